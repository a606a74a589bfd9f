use std::collections::BTreeMap;

use super::*;
use crate::engine::ParamStore;
use crate::weights::RawTensor;

fn shapes(arch: Arch, size: usize, taps: &[&str]) -> Vec<[usize; 4]> {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(2, size, size, 3));
    build(&mut g, arch, image, taps).unwrap().into_iter().map(|(_, v)| g.shape(v).0).collect()
}

#[test]
fn wide_resnet_taps_have_the_published_shapes() {
    let expected = [[2, 64, 64, 256], [2, 32, 32, 512], [2, 16, 16, 1024], [2, 8, 8, 2048]];
    assert_eq!(shapes(Arch::WideResnet50_2, 256, &["layer1", "layer2", "layer3", "layer4"]), expected);
}

#[test]
fn efficientnet_taps_have_the_published_shapes() {
    let taps = ["block2", "block4", "block10", "block15", "block5.expand", "block11.expand"];
    let expected = [
        [2, 64, 64, 24],
        [2, 32, 32, 40],
        [2, 16, 16, 112],
        [2, 8, 8, 320],
        [2, 32, 32, 240],
        [2, 16, 16, 672],
    ];
    assert_eq!(shapes(Arch::EfficientnetLite0, 256, &taps), expected);
}

#[test]
fn backbones_have_the_published_number_of_weights() {
    let scalars = |arch: Arch| -> usize {
        arch.params().iter().filter(|(name, _)| !name.ends_with(".moments")).map(|(_, s)| s.len()).sum()
    };
    // torchvision's count without the classifier.
    assert_eq!(scalars(Arch::WideResnet50_2), 66_834_240);
    // 4,652,008 less the classifier (1,281,000) and the 1280-wide head (409,600 + 2,560).
    assert_eq!(scalars(Arch::EfficientnetLite0), 2_958_848);
}

#[test]
fn nothing_behind_the_deepest_tap_is_built() {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(1, 64, 64, 3));
    build(&mut g, Arch::EfficientnetLite0, image, &["block5.expand"]).unwrap();
    assert!(g.params().all(|(name, _)| !name.contains("_blocks.6") && !name.contains("_blocks.5._bn1")));
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let mut g = Graph::new();
    let image = g.input("image", Shape::new(1, 64, 64, 3));
    let error = build(&mut g, Arch::WideResnet50_2, image, &["layer5"]).unwrap_err().to_string();
    assert!(error.contains("`layer5`") && error.contains("layer1, layer2"), "{error}");
    let error = "resnet".parse::<Arch>().unwrap_err().to_string();
    assert!(error.contains("wide_resnet50_2"), "{error}");
    for arch in Arch::ALL {
        assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
    }
}

/// What PyTorch would have saved of `store`.
fn as_pytorch(store: &ParamStore, rename: impl Fn(&str) -> String) -> BTreeMap<String, RawTensor> {
    let mut raw = BTreeMap::new();
    for (name, tensor) in store.iter() {
        let [kh, kw, cin, cout] = tensor.shape.0;
        if let Some(bn) = name.strip_suffix(".moments") {
            let (mean, variance) = tensor.data.split_at(cout);
            raw.insert(rename(&format!("{bn}.running_mean")), RawTensor::real(vec![cout], mean.to_vec()));
            raw.insert(rename(&format!("{bn}.running_var")), RawTensor::real(vec![cout], variance.to_vec()));
        } else if kh * kw * cin == 1 {
            raw.insert(rename(name), RawTensor::real(vec![cout], tensor.data.clone()));
        } else {
            let at = |o, i, y, x| tensor.data[((y * kw + x) * cin + i) * cout + o];
            let mut data = vec![];
            for o in 0..cout {
                for i in 0..cin {
                    (0..kh).for_each(|y| (0..kw).for_each(|x| data.push(at(o, i, y, x))));
                }
            }
            raw.insert(rename(name), RawTensor::real(vec![cout, cin, kh, kw], data));
        }
    }
    raw
}

#[test]
fn imported_weights_are_the_exported_ones() {
    let store = random_weights(Arch::EfficientnetLite0, 3);
    for prefix in ["", "backbone.feature_extractor."] {
        let mut raw = as_pytorch(&store, |name| format!("{prefix}{name}"));
        raw.insert(format!("{prefix}_fc.weight"), RawTensor::real(vec![2, 3], vec![0.0; 6]));
        assert!(import_weights(Arch::EfficientnetLite0, raw).unwrap() == store, "prefix `{prefix}`");
    }
}

#[test]
fn timm_names_are_understood() {
    // timm 1.0's names for a few layers of `tf_efficientnet_lite0`.
    let timm = import::naming_for_tests;
    for (ours, theirs) in [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight"),
        ("_blocks.0._bn1.weight", "blocks.0.0.bn1.weight"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias"),
        ("_blocks.2._expand_conv.weight", "blocks.1.1.conv_pw.weight"),
        ("_blocks.11._bn0.weight", "blocks.5.0.bn1.weight"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_blocks.15._bn2.running_mean", "blocks.6.0.bn3.running_mean"),
    ] {
        assert_eq!(timm(ours), theirs);
    }
    let store = random_weights(Arch::EfficientnetLite0, 3);
    assert!(import_weights(Arch::EfficientnetLite0, as_pytorch(&store, timm)).unwrap() == store);
}

#[test]
fn missing_misshaped_and_infinite_weights_are_listed() {
    let store = random_weights(Arch::EfficientnetLite0, 3);
    let mut raw = as_pytorch(&store, str::to_owned);
    raw.remove("_bn0.running_var");
    raw.insert("_bn0.bias".into(), RawTensor::real(vec![31], vec![0.0; 31]));
    raw.insert("_bn0.weight".into(), RawTensor::real(vec![32], vec![f32::NAN; 32]));
    let error = import_weights(Arch::EfficientnetLite0, raw).unwrap_err().to_string();
    assert!(error.contains("`_bn0.running_var` is missing"), "{error}");
    assert!(error.contains("`_bn0.bias` is [31] instead of [32]"), "{error}");
    assert!(error.contains("`_bn0.weight` holds a number that is not finite"), "{error}");
    let error = import_weights(Arch::WideResnet50_2, BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("`conv1.weight` is missing") && error.contains("more"), "{error}");
}

#[test]
fn our_own_file_is_read_back_and_not_for_another_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let store = random_weights(Arch::EfficientnetLite0, 4);
    save_weights(&path, Arch::EfficientnetLite0, &store).unwrap();
    assert!(load_weights(&path, Arch::EfficientnetLite0).unwrap() == store);
    let error = load_weights(&path, Arch::WideResnet50_2).unwrap_err().to_string();
    assert!(error.contains("efficientnet_lite0"), "{error}");
}
