//! Tests of the formats of text files: marks, encodings, fields, compression and their limits.
#![allow(clippy::disallowed_methods)] // tests write their own texts

use std::io::Write;

use super::*;

/// The documents of one file with the given name and content.
fn documents(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    documents_of(name, bytes, "text")
}

fn documents_of(name: &str, bytes: &[u8], field: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("written");
    let mut documents: Vec<String> = Vec::new();
    read_texts(&[&path], field, &mut |piece| {
        if piece.starts_document {
            documents.push(String::new());
        }
        documents
            .last_mut()
            .expect("a document has started")
            .push_str(piece.text);
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(documents)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("compressed")
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    for name in ["a.txt", "a.utf8", "a.raw"] {
        assert_eq!(
            documents(name, b"\xEF\xBB\xBFHello"),
            Ok(vec!["Hello".into()])
        );
        assert_eq!(
            documents(name, "Hel\u{feff}lo".as_bytes()),
            Ok(vec!["Hel\u{feff}lo".into()])
        );
    }
    let lines = b"\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\", \"n\": [1]}";
    assert_eq!(
        documents("a.jsonl", lines),
        Ok(vec!["a".into(), "b".into()])
    );
    assert_eq!(
        documents("a.jsonl.gz", &gzip(lines)),
        Ok(vec!["a".into(), "b".into()])
    );
    assert_eq!(
        documents("a.txt.zst", &zstd(b"\xEF\xBB\xBFx")),
        Ok(vec!["x".into()])
    );
    assert_eq!(
        documents("empty.txt", b"\xEF\xBB\xBF"),
        Ok(vec![String::new()])
    );
}

#[test]
fn other_encodings_are_refused_by_name_or_by_the_offset_of_the_first_bad_byte() {
    let text = "Once upon a time there was a fox. ".repeat(20);
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16_big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let utf32: Vec<u8> = text
        .chars()
        .flat_map(|c| (c as u32).to_le_bytes())
        .collect();
    let marked = |mark: &[u8], text: &[u8]| [mark, text].concat();
    for (bytes, expected) in [
        (utf16.clone(), "UTF-16, little-endian (by its zero bytes)"),
        (utf16_big.clone(), "UTF-16, big-endian (by its zero bytes)"),
        (
            marked(b"\xFF\xFE", &utf16),
            "UTF-16, little-endian (by its byte order mark)",
        ),
        (
            marked(b"\xFE\xFF", &utf16_big),
            "UTF-16, big-endian (by its byte order mark)",
        ),
        (utf32.clone(), "UTF-32, little-endian (by its zero bytes)"),
        (
            marked(b"\xFF\xFE\0\0", &utf32),
            "UTF-32 (by its byte order mark)",
        ),
        (b"caf\xE9 au lait".to_vec(), "byte 3 is not valid UTF-8"),
        (b"\xEF\xBB\xBFcaf\xE9".to_vec(), "byte 6 is not valid UTF-8"),
        (
            b"cut off: \xF0\x9F\x99".to_vec(),
            "byte 9 is not valid UTF-8",
        ),
    ] {
        for name in ["a.txt", "a.jsonl"] {
            let error = documents(name, &bytes).expect_err("refused");
            assert!(error.contains(expected), "{error}");
            let error = documents(&format!("{name}.gz"), &gzip(&bytes)).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
    }
    // Zero bytes alone are text.
    assert_eq!(
        documents("a.txt", b"a\0b\0\0\0"),
        Ok(vec!["a\0b\0\0\0".into()])
    );
}

#[test]
fn characters_on_the_border_of_blocks_stay_whole_and_later_errors_have_their_offset() {
    let text = format!("{}{}", "x", "🙂漢é".repeat(100_000));
    assert_eq!(documents("a.txt", text.as_bytes()), Ok(vec![text.clone()]));
    let mut broken = text.into_bytes();
    let offset = broken.len();
    broken.push(0x80);
    let error = documents("a.txt", &broken).expect_err("refused");
    assert!(
        error.contains(&format!("byte {offset} is not valid UTF-8")),
        "{error}"
    );
}

#[test]
fn the_field_of_the_text_may_have_another_name() {
    let lines = b"{\"text\": 1, \"content\": \"a\"}\n{\"content\": \"b\"}\n";
    let found = documents_of("a.jsonl", lines, "content");
    assert_eq!(found, Ok(vec!["a".into(), "b".into()]));
    for (lines, line, expected) in [
        (
            &b"{\"text\": \"a\"}\n\n{\"content\": \"b\"}"[..],
            3,
            "missing field `text`",
        ),
        (b"{\"text\": null}", 1, "expected a string"),
        (b"[\"a\"]", 1, "expected an object"),
        (b"{\"text\": \"a\"} x", 1, "trailing characters"),
        (b"{\"text\": \"a\"", 1, "EOF"),
    ] {
        let error = documents("a.jsonl", lines).expect_err("refused");
        assert!(error.contains(&format!("a.jsonl:{line}: ")), "{error}");
        assert!(
            error.contains(expected) && error.contains("--field"),
            "{error}"
        );
    }
}

#[test]
fn unknown_kinds_of_file_are_refused() {
    for name in ["a.bin", "a", "a.gz", "a.parquet.gz", "a.json", "a.txt.bz2"] {
        let error = documents(name, b"text").expect_err("refused");
        assert!(error.contains("unsupported kind of file"), "{error}");
    }
}

#[test]
fn a_compressed_text_expands_to_a_limit_only() {
    let folder = tempfile::tempdir().expect("folder");
    let repeated = vec![b'a'; 100 << 20];
    for (name, bytes) in [
        ("a.txt.gz", gzip(&repeated)),
        ("a.txt.zst", zstd(&repeated)),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let error = read_texts(&[&path], "text", &mut |_| Ok(())).expect_err("refused");
        assert!(matches!(error, TextError::Expansion { .. }), "{error}");
    }
    // A column that declares too much is not read at all; one row may be repeated by a dictionary.
    let long = "a".repeat(80 << 20);
    let repeated = vec![Some(&long[..1 << 20]); 80];
    for rows in [vec![Some(long.as_str())], repeated] {
        let error = documents("a.parquet", &parquet_file("text", &rows, "zstd"));
        let error = error.expect_err("refused");
        assert!(error.contains("expands to more than"), "{error}");
    }
    let damaged = &gzip(b"Once upon a time")[..20];
    assert!(documents("a.txt.gz", damaged).is_err());
    assert!(documents("a.txt.zst", b"Once upon a time").is_err());
}

/// A Parquet file with a column of numbers and a column of optional strings.
fn parquet_file(name: &str, rows: &[Option<&str>], compression: &str) -> Vec<u8> {
    use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
    use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;

    let schema = format!("message m {{ REQUIRED INT64 id; OPTIONAL BYTE_ARRAY {name} (UTF8); }}");
    let schema = ::parquet::schema::parser::parse_message_type(&schema).expect("schema");
    let compression = match compression {
        "zstd" => Compression::ZSTD(ZstdLevel::default()),
        "gzip" => Compression::GZIP(GzipLevel::default()),
        "snappy" => Compression::SNAPPY,
        _ => Compression::UNCOMPRESSED,
    };
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema.into(), properties.into()).expect("writer");
    for rows in rows.chunks(150) {
        let mut group = writer.next_row_group().expect("group");
        let ids: Vec<i64> = (0..rows.len() as i64).collect();
        let mut column = group.next_column().expect("column").expect("ids");
        column
            .typed::<Int64Type>()
            .write_batch(&ids, None, None)
            .expect("written");
        column.close().expect("closed");
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        let texts: Vec<ByteArray> = rows.iter().flatten().map(|&row| row.into()).collect();
        let mut column = group.next_column().expect("column").expect("texts");
        let typed = column.typed::<ByteArrayType>();
        typed
            .write_batch(&texts, Some(&levels), None)
            .expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
    }
    writer.close().expect("closed");
    bytes
}

#[test]
fn every_row_of_a_parquet_file_is_a_document() {
    let texts: Vec<String> = (0..400)
        .map(|row| format!("Story {} é", row % 300))
        .collect();
    let rows: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
    for compression in ["none", "snappy", "gzip", "zstd"] {
        let bytes = parquet_file("text", &rows, compression);
        assert_eq!(
            documents("a.parquet", &bytes),
            Ok(texts.clone()),
            "{compression}"
        );
    }
    let bytes = parquet_file("content", &rows, "zstd");
    assert_eq!(documents_of("a.parquet", &bytes, "content"), Ok(texts));
    let error = documents("a.parquet", &bytes).expect_err("refused");
    assert!(
        error.contains("\"content\"") && error.contains("--field"),
        "{error}"
    );
    let error = documents_of("a.parquet", &bytes, "id").expect_err("refused");
    assert!(error.contains("expected one string per row"), "{error}");
    let bytes = parquet_file("text", &[Some("a"), None, Some("b")], "none");
    let error = documents("a.parquet", &bytes).expect_err("refused");
    assert!(error.contains("row 1: found no value of `text`"), "{error}");
}

#[test]
fn damaged_parquet_files_are_refused_and_never_end_the_program() {
    let rows = ["Once upon a time", "there was a fox", "who lived in a tree"].map(Some);
    let bytes = parquet_file("text", &rows, "snappy");
    assert!(documents("a.parquet", &bytes[..bytes.len() / 2]).is_err());
    assert!(documents("a.parquet", b"PAR1PAR1").is_err());
    let mut refused = 0;
    for position in (0..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0xA5;
        // Damage in a value is not noticed: the format has no checksums that writers have to set.
        refused += usize::from(documents("a.parquet", &damaged).is_err());
    }
    assert!(
        refused > bytes.len() / 12,
        "{refused} of {}",
        bytes.len() / 3
    );
}
