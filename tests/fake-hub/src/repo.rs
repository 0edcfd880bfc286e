//! Repositories, commits, git blobs and large objects: the part of git that a client can observe.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use sha1::Digest;

/// A file of a commit.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) size: u64,
    /// The id of the git blob: the file itself, or the LFS pointer to it.
    pub(crate) blob: String,
    /// SHA-256 of a file in large file storage.
    pub(crate) lfs: Option<String>,
}

impl Entry {
    /// A file in large file storage.
    pub(crate) fn lfs(sha256: &str, size: u64) -> Self {
        let pointer = pointer(sha256, size);
        Self {
            size,
            blob: blob_id(pointer.as_bytes()),
            lfs: Some(sha256.into()),
        }
    }

    /// Bytes of the LFS pointer; 0 for other files.
    pub(crate) fn pointer_size(&self) -> usize {
        self.lfs
            .as_ref()
            .map_or(0, |sha256| pointer(sha256, self.size).len())
    }
}

/// The LFS pointer that git holds in place of a large file.
fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

/// The files of a commit by path.
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
    /// The commit of a branch or with an id.
    fn find(&self, revision: &str) -> Option<&Commit> {
        match self.branches.get(revision) {
            Some(index) => self.commits.get(*index),
            None => self.commits.iter().find(|commit| commit.id == revision),
        }
    }

    /// The commit id and the tree of a revision.
    pub(crate) fn resolve(&self, revision: &str) -> Option<(String, Tree)> {
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

/// An unfinished multipart upload.
pub(crate) struct MultipartUpload {
    pub(crate) oid: String,
    /// The parts received so far, by number.
    pub(crate) parts: BTreeMap<u64, Vec<u8>>,
    /// Number of parts in total.
    pub(crate) count: u64,
}

/// The data of the fake Hub.
pub(crate) struct State {
    folder: PathBuf,
    pub(crate) repos: HashMap<String, Repo>,
    pub(crate) uploads: HashMap<String, MultipartUpload>,
    /// Uploaded objects that have not been verified yet.
    pub(crate) unverified: HashMap<String, Vec<u8>>,
    pub(crate) counter: u64,
}

impl State {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            repos: HashMap::new(),
            uploads: HashMap::new(),
            unverified: HashMap::new(),
            counter: 0,
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Stores bytes under an id.
    pub(crate) fn store(&self, id: &str, data: &[u8]) {
        std::fs::write(self.path(id), data).expect("the folder of the fake Hub is writable");
    }

    /// The bytes stored under an id.
    pub(crate) fn load(&self, id: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(id)).ok()
    }

    /// Whether bytes are stored under an id.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// Creates a repository with a first commit unless it exists. Returns whether it was created.
    pub(crate) fn create_repo(&mut self, repo: &str) -> bool {
        if self.repos.contains_key(repo) {
            return false;
        }
        let attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
        let entry = self.store_blob(attributes);
        let mut created = Repo::default();
        created.commit("main", Tree::from([(".gitattributes".into(), entry)]));
        self.repos.insert(repo.into(), created);
        true
    }

    /// Stores a file as a git blob.
    pub(crate) fn store_blob(&self, data: &[u8]) -> Entry {
        let blob = blob_id(data);
        self.store(&blob, data);
        Entry {
            size: data.len() as u64,
            blob,
            lfs: None,
        }
    }

    /// Commits a file to `main`. Files of at least `threshold` bytes go to large file storage.
    pub(crate) fn commit_file(&mut self, repo: &str, path: &str, data: &[u8], threshold: u64) {
        self.create_repo(repo);
        let entry = if data.len() as u64 >= threshold {
            let sha256 = sha256(data);
            self.store(&sha256, data);
            Entry::lfs(&sha256, data.len() as u64)
        } else {
            self.store_blob(data)
        };
        let repo = self.repos.get_mut(repo).expect("created above");
        let (_, mut tree) = repo.resolve("main").expect("every repository has it");
        tree.insert(path.into(), entry);
        repo.commit("main", tree);
    }

    /// The content of every file of a branch.
    pub(crate) fn files(&self, repo: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        let Some((_, tree)) = self.repos.get(repo).and_then(|repo| repo.resolve(branch)) else {
            return BTreeMap::new();
        };
        let bytes = |entry: Entry| self.load(entry.lfs.as_ref().unwrap_or(&entry.blob));
        tree.into_iter()
            .map(|(path, entry)| (path, bytes(entry).expect("stored before it was committed")))
            .collect()
    }

    /// The number of commits of a branch.
    pub(crate) fn commit_count(&self, repo: &str, branch: &str) -> usize {
        let Some(repo) = self.repos.get(repo) else {
            return 0;
        };
        let mut next = repo.branches.get(branch).copied();
        let mut count = 0;
        while let Some(index) = next {
            count += 1;
            next = repo.commits[index].parent;
        }
        count
    }

    /// Replaces the bytes stored under the digest of `data`.
    pub(crate) fn corrupt_object(&mut self, data: &[u8], with: &[u8]) {
        self.store(&sha256(data), with);
    }

    /// A new upload id.
    pub(crate) fn new_upload_id(&mut self) -> String {
        self.counter += 1;
        format!("u{}", self.counter)
    }
}

/// The git blob id of `data`.
fn blob_id(data: &[u8]) -> String {
    let mut hasher = sha1::Sha1::new();
    hasher.update(format!("blob {}\0", data.len()));
    hasher.update(data);
    hex::encode(hasher.finalize())
}

pub(crate) fn sha256(data: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(data))
}
