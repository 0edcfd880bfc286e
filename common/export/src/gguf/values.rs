//! The bytes of a GGUF header (version 3): metadata, descriptors of tensors, alignment. Little-endian.

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Version of the format.
pub const VERSION: u32 = 3;
/// Alignment of the data of every tensor, bytes.
pub const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// 32 bits without sign.
    U32(u32),
    /// float32.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of numbers with sign.
    I32s(Vec<i32>),
    /// A list of float32.
    F32s(Vec<f32>),
    /// A list of truth values.
    Bools(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

/// Codes of value types.
pub(super) mod code {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const LIST: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// Appends a text: its length and its bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Appends the head of a list.
fn put_list(out: &mut Vec<u8>, code: u32, count: usize) {
    out.extend(code::LIST.to_le_bytes());
    out.extend(code.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut one = |code: u32, bytes: &[u8]| {
        out.extend(code.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U32(value) => one(code::U32, &value.to_le_bytes()),
        Value::F32(value) => one(code::F32, &value.to_le_bytes()),
        Value::Bool(value) => one(code::BOOL, &[u8::from(*value)]),
        Value::Text(text) => {
            one(code::TEXT, &[]);
            put_text(out, text);
        }
        Value::I32s(values) => {
            put_list(out, code::I32, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::F32s(values) => {
            put_list(out, code::F32, values.len());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::Bools(values) => {
            put_list(out, code::BOOL, values.len());
            out.extend(values.iter().map(|value| u8::from(*value)));
        }
        Value::Texts(texts) => {
            put_list(out, code::TEXT, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
    }
}

/// The descriptor of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Name.
    pub name: String,
    /// Dimensions, outermost first; the file holds them innermost first.
    pub shape: Vec<u64>,
    /// Code of its type.
    pub type_code: u32,
    /// Size, bytes.
    pub bytes: u64,
}

/// The header of a file, padded to the data, and the offset of every tensor in the file.
pub fn header(metadata: &[(String, Value)], tensors: &[Descriptor]) -> (Vec<u8>, Vec<u64>) {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let (mut offset, mut offsets) = (0u64, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for dimension in tensor.shape.iter().rev() {
            out.extend(dimension.to_le_bytes());
        }
        out.extend(tensor.type_code.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offsets.push(offset);
        offset += tensor.bytes.next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    let start = out.len() as u64;
    (
        out,
        offsets.into_iter().map(|offset| start + offset).collect(),
    )
}
