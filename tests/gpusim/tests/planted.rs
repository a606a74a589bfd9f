//! Every check finds the bug it is for, on the line that has it, and is silent on right code.

use gpusim::machine::{Config, Fault, Kernel, LaunchError, Memory, Module, Options, Order, launch, parse};

const PTX: &str = include_str!("planted/planted.ptx");
const SOURCE: &str = include_str!("planted/planted.cu");
const FLOATS: usize = 128;

fn module() -> Module {
    parse(PTX).expect("the fixture is PTX that is supported")
}

/// Runs a kernel as its header says; gives `y`.
fn run(kernel: &Kernel, order: Order, free_x: bool) -> Result<Vec<f32>, LaunchError> {
    let mut memory = Memory::new();
    let x = memory.alloc(FLOATS * 4).expect("memory");
    let y = memory.alloc(FLOATS * 4).expect("memory");
    let values: Vec<u8> = (0..FLOATS).flat_map(|i| (i as f32).to_le_bytes()).collect();
    memory.write(x, &values).expect("inside");
    if free_x {
        assert!(memory.free(x));
    }
    let config = Config { grid: [2, 1, 1], block: [64, 1, 1], shared: 512 };
    let params = [x.to_le_bytes().to_vec(), y.to_le_bytes().to_vec()];
    launch(kernel, &mut memory, &config, &params, &Options { check: true, order, threads: 2 })?;
    let mut bytes = vec![0; FLOATS * 4];
    memory.read(y, &mut bytes).expect("inside");
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn faults(name: &str) -> Vec<Fault> {
    let module = module();
    let kernel = module.kernels.iter().find(|k| k.name == format!("bug_{name}")).expect(name);
    match run(kernel, Order::Forward, name == "freed") {
        Err(LaunchError::Faults(faults)) => faults,
        other => panic!("{name}: {other:?}"),
    }
}

/// A fault that says so, on the marked line.
fn finds(name: &str, says: &str) {
    let mark = format!("// BUG {name}");
    let line = SOURCE.lines().position(|l| l.ends_with(&mark)).map(|i| i + 1);
    let found = faults(name);
    let place = |f: &Fault| match line {
        Some(line) => {
            f.place.ends_with(&format!("planted.cu:{line}"))
                || f.place.ends_with(&format!("planted.cu:{line})"))
        }
        None => true,
    };
    assert!(found.iter().any(|f| f.what.contains(says) && place(f)), "{name}, line {line:?}: {found:#?}");
}

macro_rules! finds {
    ($($test:ident: $name:literal, $says:literal;)*) => { $(
        #[test]
        fn $test() {
            finds($name, $says);
        }
    )* };
}

finds! {
    a_read_behind_a_buffer_is_found: "read_outside", "bytes behind an allocation of 512";
    a_write_behind_a_buffer_is_found: "write_outside", "bytes behind an allocation of 512";
    a_use_of_freed_memory_is_found: "freed", "freed";
    a_misaligned_access_is_found: "misaligned", "misaligned";
    a_read_of_global_memory_without_a_value_is_found: "uninitialised_global", "uninitialised global";
    a_read_of_shared_memory_without_a_value_is_found: "uninitialised_shared", "uninitialised shared";
    a_missing_barrier_between_warps_is_found: "race_warps", "";
    a_missing_barrier_between_lanes_is_found: "race_lanes", "race";
    lanes_that_write_different_values_to_one_place_are_found: "race_lockstep", "race";
    a_write_over_what_others_still_read_is_found: "race_write_after_read", "race";
    a_plain_read_beside_atomics_is_found: "race_atomic", "race";
    blocks_that_write_the_same_place_are_found: "race_blocks", "race";
    a_block_that_reads_what_another_writes_is_found: "race_blocks_read", "race";
    threads_of_a_block_that_race_in_global_memory_are_found: "race_global_in_block", "global";
    lanes_that_write_one_place_in_global_memory_are_found: "race_global_lockstep", "race";
    a_barrier_that_some_lanes_miss_is_found: "divergent_barrier", "divergent barrier";
    a_shuffle_of_absent_lanes_is_found: "absent_lanes", "shfl.sync needs lanes";
    an_ldmatrix_of_half_a_warp_is_found: "partial_ldmatrix", "ldmatrix needs lanes";
    an_mma_of_half_a_warp_is_found: "partial_mma", "mma needs lanes";
    a_copy_that_is_not_awaited_is_found: "copy_not_awaited", "cp.async";
    a_wait_for_one_group_too_few_is_found: "copy_group", "cp.async";
    a_write_over_a_pending_copy_is_found: "copy_overwritten", "cp.async";
    a_copy_that_others_read_without_a_barrier_is_found: "copy_without_barrier", "";
    a_step_from_one_shared_array_into_the_next_is_found: "red_zone", "in no variable";
    a_step_out_of_dynamic_shared_memory_is_found: "dynamic_shared", "in no variable";
    warps_at_different_barriers_are_found: "deadlock", "deadlock";
    a_syncwarp_of_other_lanes_does_not_order: "syncwarp_of_others", "race";
    a_trap_is_found: "trap", "trap";
}

#[test]
fn every_planted_bug_has_a_test() {
    let bugs = module().kernels.iter().filter(|k| k.name.starts_with("bug_")).count();
    assert_eq!(bugs, 28);
}

#[test]
fn right_kernels_run_in_silence_and_alike_in_any_order() {
    let module = module();
    let good: Vec<&Kernel> = module.kernels.iter().filter(|k| k.name.starts_with("good_")).collect();
    assert_eq!(good.len(), 11);
    for kernel in good {
        let forward = run(kernel, Order::Forward, false).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        for order in [Order::Reverse, Order::Random(1), Order::Random(2), Order::Random(3)] {
            let other = run(kernel, order, false).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
            assert_eq!(forward, other, "{} {order:?}", kernel.name);
        }
    }
}

#[test]
fn bugs_are_found_in_any_order() {
    for kernel in module().kernels.iter().filter(|k| k.name.starts_with("bug_race")) {
        for order in [Order::Reverse, Order::Random(7)] {
            assert!(run(kernel, order, false).is_err(), "{} {order:?}", kernel.name);
        }
    }
}

#[test]
fn values_are_those_that_the_source_says() {
    let module = module();
    let get = |name: &str| {
        let kernel = module.kernels.iter().find(|k| k.name == name).expect(name);
        run(kernel, Order::Forward, false).expect(name)
    };
    let shared = get("good_shared");
    assert!((0..FLOATS).all(|i| shared[i] == (i / 64 * 64 + 63 - i % 64) as f32 + 2.0));
    let copy = get("good_copy");
    assert!((0..FLOATS).all(|i| copy[i] == 2.0 * ((63 - i % 64) % 32 * 4) as f32));
    let votes = get("good_votes");
    // Thread 3 is in the first warp.
    assert!((0..FLOATS).all(|i| votes[i] == 101_016.0 + if i % 64 < 32 { 10_000.0 } else { 0.0 }));
    let exit = get("good_early_exit");
    assert!((0..FLOATS).all(|i| exit[i] == i as f32 * if i % 64 < 40 { 2.0 } else { 1.0 }));
    let halves = get("good_halves");
    assert!((0..FLOATS).all(|i| halves[i] == 2.0 * (63 - i % 64) as f32 + 1.0));
}

#[test]
fn arguments_and_geometry_that_do_not_fit_are_refused() {
    let module = module();
    let kernel = &module.kernels[0];
    let mut memory = Memory::new();
    let options = Options::default();
    let config = Config { grid: [1, 1, 1], block: [64, 1, 1], shared: 0 };
    let pointer = vec![0; 8];
    for (params, block) in [
        (vec![pointer.clone()], 64),
        (vec![pointer.clone(), vec![0; 4]], 64),
        (vec![pointer.clone(), pointer.clone()], 65),
    ] {
        let config = Config { block: [block, 1, 1], ..config.clone() };
        let result = launch(kernel, &mut memory, &config, &params, &options);
        assert!(matches!(result, Err(LaunchError::Invalid(_))), "{params:?} {block}");
    }
}
