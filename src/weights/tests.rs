use std::path::PathBuf;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

/// A small generator for test input (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

#[test]
fn both_pytorch_formats_hold_what_safetensors_holds() {
    let expected = read_tensors(&golden("expected.safetensors")).unwrap();
    assert_eq!(expected.len(), 14);
    for name in ["zip.pth", "legacy.pth"] {
        let found = read_tensors(&golden(name)).unwrap();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_checkpoint_stands_for_its_state_dictionary_without_the_module_prefix() {
    let expected = read_tensors(&golden("expected.safetensors")).unwrap();
    for name in ["zip_checkpoint.pth", "legacy_checkpoint.pth"] {
        assert_eq!(read_tensors(&golden(name)).unwrap(), expected, "{name}");
    }
}

#[test]
fn parameters_are_read_as_their_tensors() {
    for name in ["zip_parameters.pth", "legacy_parameters.pth"] {
        let found = read_tensors(&golden(name)).unwrap();
        let shapes: Vec<_> = found.iter().map(|(name, t)| (name.as_str(), t.shape.as_slice())).collect();
        assert_eq!(shapes, [("0.bias", &[3][..]), ("0.weight", &[3, 2][..])], "{name}");
    }
}

#[test]
fn a_pickle_that_would_run_code_is_refused_by_name() {
    for name in ["zip_attack.pth", "legacy_attack.pth", "attack_0.pkl", "attack_2.pkl", "attack_4.pkl"] {
        let error = read_tensors(&golden(name)).unwrap_err();
        assert!(
            matches!(&error, WeightsError::Code { global, .. } if global == "posix.system"),
            "{name}: {error}"
        );
        assert!(error.to_string().contains("would run `posix.system`; nothing was executed"), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for name in ["expected.safetensors", "zip.pth", "legacy.pth", "legacy_checkpoint.pth"] {
        let bytes = std::fs::read(golden(name)).unwrap();
        for fiftieth in 0..50 {
            let cut = &bytes[..bytes.len() * fiftieth / 50];
            assert!(parse(cut).is_err(), "{name} cut to {} bytes was read", cut.len());
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for name in
        ["expected.safetensors", "zip.pth", "legacy.pth", "zip_checkpoint.pth", "legacy_checkpoint.pth"]
    {
        let clean = std::fs::read(golden(name)).unwrap();
        let mut random = Random(7);
        for _ in 0..2000 {
            let mut bytes = clean.clone();
            for _ in 0..1 + random.next() % 4 {
                let at = random.next() as usize % bytes.len();
                bytes[at] = random.next() as u8;
            }
            // Either answer is right: a flipped weight is a weight.
            let _ = parse(&bytes);
        }
    }
}

#[test]
fn random_pickles_never_panic() {
    // The instructions that build something, so that random programs get somewhere.
    let codes = b"(.0122NKM}](l)tdaesuqhRbQ\x85\x86\x87\x88\x94\x93c\x8cU";
    let mut random = Random(8);
    for _ in 0..20_000 {
        let program: Vec<u8> = (0..random.next() % 60)
            .map(|_| match random.next() % 5 {
                0 => random.next() as u8,
                _ => codes[random.next() as usize % codes.len()],
            })
            .collect();
        if let Ok((machine, root, _)) = pickle::run(&program) {
            let _ = machine.flatten(root);
        }
    }
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn hostile_safetensors_headers_are_errors() {
    let huge = 1u64 << 61;
    let wrapping: Vec<_> = (0..8u64)
        .map(|i| {
            let (start, end) = (i * (huge - 1), (i + 1) * (huge - 1));
            format!(r#""{i}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, huge - 1)
        })
        .collect();
    let cases = [
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#.to_owned(),
        format!("{{{}}}", wrapping.join(",")),
        "{".repeat(100_000),
        "[".repeat(100_000),
        r#"{"a":7}"#.to_owned(),
    ];
    for header in cases {
        assert!(parse(&safetensors(&header, &[0; 4])).is_err(), "{header:.80}");
    }
    // Header lengths that do not fit.
    for length in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001, 64] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(b"{}      ");
        assert!(parse(&bytes).is_err(), "{length}");
    }
}

#[test]
fn a_small_file_cannot_describe_a_huge_tensor() {
    // A one-element storage seen with strides of 0 as 2^20 × 2^20 elements.
    let mut program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    program.extend(b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00");
    program.extend(b"J\x00\x00\x10\x00J\x00\x00\x10\x00\x86K\x00K\x00\x86\x89NtR.");
    let (machine, root, _) = pickle::run(&program).unwrap();
    assert_eq!(machine.flatten(root).unwrap()[""].shape, [1 << 20, 1 << 20]);
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend(program);
    file.extend(b"\x80\x02]U\x010a.\x01\0\0\0\0\0\0\0\0\0\x80\x3f");
    match parse(&file) {
        Err(Fault::Unsupported(what)) => assert!(what.contains("1099511627776 elements"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dictionary_that_holds_itself_is_an_error() {
    // d = {}; d["a"] = d
    let (machine, root, _) = pickle::run(b"\x80\x02}q\x00U\x01ah\x00s.").unwrap();
    assert!(machine.flatten(root).is_err());
    // Twenty levels of lists that each hold the next twice: a million leaves of 100 bytes.
    let mut program = b"\x80\x02]".to_vec();
    (0..20).for_each(|_| program.extend(b"q\x000](h\x00h\x00e"));
    program.push(b'.');
    let (machine, root, _) = pickle::run(&program).unwrap();
    assert!(machine.flatten(root).is_err());
}

#[test]
fn what_is_no_weights_file_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    for content in [&b""[..], b"hello", b"\x89PNG\r\n\x1a\n and so on", b"PK\x03\x04 no zip"] {
        std::fs::write(&path, content).unwrap();
        let error = read_tensors(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
    assert!(matches!(read_tensors(&folder.path().join("none")), Err(WeightsError::Missing { .. })));
    assert!(matches!(read_tensors(folder.path()), Err(WeightsError::Format { .. })));
}

#[test]
fn what_is_written_is_read_back_with_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let metadata = BTreeMap::from([("format".to_owned(), "test \"quoted\" ü".to_owned())]);
    let tensors =
        [("b", vec![2, 1], &[1.0, -2.5][..]), ("a", vec![], &[f32::MIN_POSITIVE]), ("c", vec![0, 4], &[])];
    write_tensors(&path, &tensors, &metadata).unwrap();
    let content = read_content(&path).unwrap();
    assert_eq!(content.metadata, metadata);
    for (name, shape, data) in tensors {
        assert_eq!(content.tensors[name], RawTensor::real(shape, data.to_vec()));
    }
    let first = std::fs::read(&path).unwrap();
    write_tensors(
        &path,
        &[("b", vec![2, 1], &[1.0, -2.5]), ("a", vec![], &[f32::MIN_POSITIVE]), ("c", vec![0, 4], &[])],
        &metadata,
    )
    .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first, "the same content gave other bytes");
}

#[test]
fn a_failed_write_leaves_the_old_file_and_no_litter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    std::fs::write(&path, "old").unwrap();
    let full = |_: &mut dyn std::io::Write| Err(std::io::ErrorKind::StorageFull.into());
    assert!(matches!(write_file_atomically(&path, full), Err(WeightsError::Write { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = folder.path().join("no/such/folder/w");
    let error = write_file_atomically(&nowhere, |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}
