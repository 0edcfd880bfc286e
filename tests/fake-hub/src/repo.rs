//! Repositories, commits, git blobs and large objects: as much of git as a client can see.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use sha1::Digest;

/// A file of a commit.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) size: u64,
    /// The git blob: of the file, or of the pointer to it.
    pub(crate) blob: String,
    /// SHA-256 of a file in large file storage.
    pub(crate) lfs: Option<String>,
}

impl Entry {
    /// A large file.
    pub(crate) fn lfs(sha256: &str, size: u64) -> Self {
        let pointer = pointer(sha256, size);
        Self {
            size,
            blob: blob_id(pointer.as_bytes()),
            lfs: Some(sha256.into()),
        }
    }

    /// Bytes of the pointer.
    pub(crate) fn pointer_size(&self) -> usize {
        self.lfs
            .as_ref()
            .map_or(0, |sha256| pointer(sha256, self.size).len())
    }
}

fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

pub(crate) type Tree = BTreeMap<String, Entry>;

struct Commit {
    id: String,
    parent: Option<usize>,
    tree: Tree,
}

/// A repository.
#[derive(Default)]
pub(crate) struct Repo {
    commits: Vec<Commit>,
    branches: HashMap<String, usize>,
}

impl Repo {
    fn find(&self, revision: &str) -> Option<&Commit> {
        match self.branches.get(revision) {
            Some(index) => self.commits.get(*index),
            None => self.commits.iter().find(|commit| commit.id == revision),
        }
    }

    /// Id and tree of a revision.
    pub(crate) fn at(&self, revision: &str) -> Option<(String, Tree)> {
        let commit = self.find(revision)?;
        Some((commit.id.clone(), commit.tree.clone()))
    }

    /// Commits a tree on top of a branch.
    pub(crate) fn commit(&mut self, branch: &str, tree: Tree) -> String {
        let parent = self.branches.get(branch).copied();
        let mut text = format!("{} {parent:?} {branch}", self.commits.len());
        for (path, entry) in &tree {
            text += &format!("\n{path} {}", entry.blob);
        }
        let id = hex::encode(sha1::Sha1::digest(text));
        self.branches.insert(branch.into(), self.commits.len());
        self.commits.push(Commit {
            id: id.clone(),
            parent,
            tree,
        });
        id
    }
}

/// A large file on its way.
pub(crate) struct Upload {
    pub(crate) oid: String,
    pub(crate) parts: BTreeMap<u64, Vec<u8>>,
    pub(crate) count: u64,
}

/// Everything the fake Hub holds.
pub(crate) struct State {
    folder: PathBuf,
    pub(crate) repos: HashMap<String, Repo>,
    pub(crate) uploads: HashMap<String, Upload>,
    /// What arrived and is not verified.
    pub(crate) arrived: HashMap<String, Vec<u8>>,
    pub(crate) counter: u64,
}

impl State {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            repos: HashMap::new(),
            uploads: HashMap::new(),
            arrived: HashMap::new(),
            counter: 0,
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Keeps bytes under an id.
    pub(crate) fn keep(&self, id: &str, data: &[u8]) {
        std::fs::write(self.path(id), data).expect("the folder of the fake Hub");
    }

    /// Bytes under an id.
    pub(crate) fn bytes(&self, id: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(id)).ok()
    }

    /// Whether there are bytes under an id.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// Whether the repository is new.
    pub(crate) fn create(&mut self, repo: &str) -> bool {
        if self.repos.contains_key(repo) {
            return false;
        }
        let attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
        let entry = self.blob(attributes);
        let mut new = Repo::default();
        new.commit("main", Tree::from([(".gitattributes".into(), entry)]));
        self.repos.insert(repo.into(), new);
        true
    }

    /// Keeps a small file.
    pub(crate) fn blob(&self, data: &[u8]) -> Entry {
        let blob = blob_id(data);
        self.keep(&blob, data);
        Entry {
            size: data.len() as u64,
            blob,
            lfs: None,
        }
    }

    /// Commits a file, small or large by the threshold.
    pub(crate) fn put(&mut self, repo: &str, path: &str, data: &[u8], threshold: u64) {
        self.create(repo);
        let entry = if data.len() as u64 >= threshold {
            let sha256 = sha256(data);
            self.keep(&sha256, data);
            Entry::lfs(&sha256, data.len() as u64)
        } else {
            self.blob(data)
        };
        let repo = self.repos.get_mut(repo).expect("made above");
        let (_, mut tree) = repo.at("main").expect("every repository has it");
        tree.insert(path.into(), entry);
        repo.commit("main", tree);
    }

    pub(crate) fn content(&self, repo: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let Some((_, tree)) = self.repos.get(repo).and_then(|repo| repo.at(branch)) else {
            return BTreeMap::new();
        };
        let bytes = |entry: Entry| self.bytes(entry.lfs.as_ref().unwrap_or(&entry.blob));
        tree.into_iter()
            .map(|(path, entry)| (path, bytes(entry).expect("committed, so it is kept")))
            .collect()
    }

    pub(crate) fn depth(&self, repo: &str, branch: &str) -> usize {
        let Some(repo) = self.repos.get(repo) else {
            return 0;
        };
        let mut next = repo.branches.get(branch).copied();
        let mut depth = 0;
        while let Some(index) = next {
            depth += 1;
            next = repo.commits[index].parent;
        }
        depth
    }

    pub(crate) fn tamper(&mut self, data: &[u8], with: &[u8]) {
        self.keep(&sha256(data), with);
    }

    /// A name that was not there before.
    pub(crate) fn fresh(&mut self) -> String {
        self.counter += 1;
        format!("u{}", self.counter)
    }
}

/// The id that git gives to a file's bytes.
fn blob_id(data: &[u8]) -> String {
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", data.len()));
    hasher.update(data);
    hex::encode(hasher.finalize())
}

pub(crate) fn sha256(data: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(data))
}
