use super::super::launch::{Limits, Place};
use super::super::schedule::Schedule;
use super::super::simulator::gpu;
use super::super::{Priority, Program};
use super::*;
use crate::engine::cpu::tests::{Case, cases, device_cases, params_with_weights, with_loss};
use crate::engine::philox::{Rng, Stream};
use crate::engine::{Attention, Conv, Graph, Pool, QkvLayout, Reduce, Shape, Unary, Value, Window};
use crate::kernels;

const A100: Limits = Limits { arch: 80, multiprocessors: 108, shared_bytes: 166_912 };

fn item(reads: &[usize], writes: &[usize], kernel: &'static str) -> Item {
    let family = Some(vec![("conv", kernel)]);
    Item { reads: reads.to_vec(), writes: writes.to_vec(), family }
}

fn launch(kernel: &'static str, grid: [u32; 3], args: Vec<Arg>) -> Launch {
    Launch { module: "conv", kernel, grid, block: [128, 1, 1], shared: 0, args }
}

/// Operations on few values, so that they often read what another wrote and write what another reads.
fn random_items(rng: &mut Rng) -> Vec<Item> {
    let some = |rng: &mut Rng, most: usize| (0..rng.below(most)).map(|_| rng.below(12)).collect();
    let mut one = || {
        let kernel = ["a", "b", "c"][rng.below(3)];
        let family = (rng.below(4) > 0).then(|| vec![("conv", kernel)]);
        Item { reads: some(rng, 4), writes: some(rng, 3), family }
    };
    (0..40).map(|_| one()).collect()
}

fn meet(a: &[usize], b: &[usize]) -> bool {
    a.iter().any(|n| b.contains(n))
}

#[test]
fn nothing_runs_before_or_beside_what_it_depends_on() {
    for seed in 0..200 {
        let mut rng = Stream::new(seed, 0, 0, 7).rng();
        let items = random_items(&mut rng);
        let before = dependences(&items);
        let by_levels = [0, 1, 3, usize::MAX].map(|slack| by_levels(&items, &before, slack));
        for groups in by_levels.into_iter().chain([in_lockstep(&items, &before)]) {
            let mut place = vec![usize::MAX; items.len()];
            for (at, group) in groups.iter().enumerate() {
                for i in group {
                    assert_eq!(place[*i], usize::MAX, "seed {seed}: {i} runs twice");
                    place[*i] = at;
                    let family = &items[*i].family;
                    let alike = *family == items[group[0]].family && family.is_some();
                    assert!(group.len() == 1 || alike, "seed {seed}: {group:?}");
                }
            }
            for (i, a) in items.iter().enumerate() {
                for (j, b) in items.iter().enumerate().skip(i + 1) {
                    let apart = !meet(&a.writes, &b.reads)
                        && !meet(&a.reads, &b.writes)
                        && !meet(&a.writes, &b.writes);
                    assert!(apart || place[i] < place[j], "seed {seed}: {i} and {j} of {groups:?}");
                }
            }
        }
    }
}

/// A trunk of `length` operations, each of which begins a branch of five kernels; the branches' ends meet.
fn branches(length: usize) -> Vec<Item> {
    let mut items = Vec::new();
    let mut ends = Vec::new();
    for i in 0..length {
        items.push(item(&[i], &[i + 1], "trunk"));
    }
    for i in 0..length {
        let mut from = i + 1;
        for kernel in ["norm", "conv", "silu", "attention", "add"] {
            let to = 1000 + items.len();
            items.push(item(&[from], &[to], kernel));
            from = to;
        }
        ends.push(from);
    }
    items.push(item(&ends, &[999], "end"));
    items
}

#[test]
fn branches_of_one_structure_are_as_many_groups_as_one_branch() {
    let items = branches(4);
    let before = dependences(&items);
    assert_eq!(by_levels(&items, &before, usize::MAX).len(), 4 + 5 + 1);
    // Without patience each begins when it can, and meets the others nowhere.
    assert_eq!(by_levels(&items, &before, 0).len(), items.len());
    assert_eq!(in_order(&items).len(), items.len());
    assert_eq!(in_lockstep(&items, &before).len(), 4 + 5 + 1);
}

#[test]
fn a_branch_with_an_operation_of_its_own_at_its_end_meets_the_others_all_the_same() {
    let mut items = branches(4);
    // The first branch's result is resized before the end reads it.
    let Some(end) = items.pop() else { unreachable!() };
    items.push(Item { reads: vec![end.reads[0]], writes: vec![998], family: None });
    items.push(Item { reads: [&[998], &end.reads[1..]].concat(), ..end });
    let before = dependences(&items);
    assert_eq!(in_lockstep(&items, &before).len(), 4 + 5 + 1 + 1);
    assert!(by_levels(&items, &before, usize::MAX).len() > 4 + 5 + 1 + 1);
}

#[test]
fn a_parameter_is_written_after_those_who_read_it_and_before_those_who_read_it_anew() {
    // Number 0 is the parameter: read, updated, read again.
    let items = [item(&[0, 1], &[2], "a"), item(&[0, 3], &[0, 4], "adam"), item(&[0, 1], &[5], "a")];
    assert_eq!(dependences(&items), [vec![], vec![0], vec![1]]);
    let groups = by_levels(&items, &dependences(&items), usize::MAX);
    assert_eq!(groups, [[0], [1], [2]]);
}

#[test]
fn launches_of_one_operation_follow_each_other_but_for_parts_of_one_result() {
    let one = |kernel| launch(kernel, [1, 1, 1], vec![]);
    let launches = vec![vec![one("a"), one("b")], vec![one("a")], vec![one("a"), one("b")]];
    let parts = |of: &[(usize, usize)]| Run {
        parts: of.iter().map(|(step, launch)| Part { step: *step, launch: *launch }).collect(),
    };
    let found = runs(&[vec![0, 1, 2]], &launches, |_| false);
    assert_eq!(found, [parts(&[(0, 0), (1, 0), (2, 0)]), parts(&[(0, 1), (2, 1)])]);
    let copies = vec![vec![one("a"); 3], vec![one("a"); 2]];
    assert_eq!(runs(&[vec![0, 1]], &copies, |_| true).len(), 1);
    assert_eq!(runs(&[vec![0, 1]], &copies, |_| false).len(), 3);
}

#[test]
fn no_more_problems_and_blocks_join_than_a_launch_takes() {
    let count = |launches: Vec<Launch>| {
        let group: Vec<usize> = (0..launches.len()).collect();
        let launches: Vec<Vec<Launch>> = launches.into_iter().map(|l| vec![l]).collect();
        runs(&[group], &launches, |_| false).len()
    };
    let one = |x| launch("a", [x, 2, 1], vec![]);
    assert_eq!(count(vec![one(1); MOST]), 1);
    assert_eq!(count(vec![one(1); MOST + 1]), 2);
    assert_eq!(count(vec![one(1 << 30), one(1)]), 2, "2³¹ + 2 blocks");
    assert_eq!(count(vec![one(1), Launch { block: [64, 1, 1], ..one(1) }]), 2);
    assert_eq!(count(vec![Launch { module: "optim", ..one(1) }; 2]), 2, "its kernels take one problem");
}

#[test]
fn arguments_lie_as_a_c_struct_has_them() {
    let args = vec![Arg::I32(1), Arg::Pointer(Place::Out), Arg::F32(0.5), Arg::Struct(vec![9; 12])];
    let launches = [launch("a", [3, 2, 1], args.clone()), launch("a", [5, 1, 2], args)];
    let bytes = |pointer: u64| {
        vec![1i32.to_le_bytes().to_vec(), pointer.to_le_bytes().to_vec(), vec![5; 4], vec![9; 12]]
    };
    let packed = packed(&launches.iter().collect::<Vec<_>>(), &[bytes(7), bytes(8)]);
    let word = |at: usize| u32::from_le_bytes(packed[at..at + 4].try_into().unwrap());
    // count, then the first blocks, columns and rows of eight.
    assert_eq!([word(0), word(4), word(8), word(12)], [2, 0, 6, u32::MAX]);
    assert_eq!([word(36), word(40), word(68), word(72)], [3, 5, 2, 1]);
    // 1, hole, pointer, 0.5, hole, struct, hole: 40 bytes from 104 on.
    assert_eq!([word(104), word(112), word(128), word(144), word(152)], [1, 7, 0x0909_0909, 1, 8]);
    assert_eq!(packed.len(), 104 + MOST * 40);
}

fn schedule_of(case: &Case, backward: bool) -> Option<Schedule> {
    let (g, grads) = match backward && !case.wrt.is_empty() {
        true => {
            let (g, _, grads) = with_loss(case);
            (g, grads)
        }
        false => (case.graph.clone(), vec![case.y]),
    };
    let names: Vec<String> = (0..grads.len()).map(|i| i.to_string()).collect();
    let outputs: Vec<(&str, Value)> = names.iter().map(String::as_str).zip(grads).collect();
    let params = params_with_weights(case);
    Schedule::new(&g, &outputs, [&params, &params], A100).ok()
}

/// The driver reads as many bytes as the kernel's parameters have, from wherever it is pointed to.
#[test]
fn every_launch_gives_its_kernel_the_bytes_that_it_takes() {
    if !kernels::embedded() {
        return;
    }
    let size = |arg: &Arg| match arg {
        Arg::Pointer(_) | Arg::Null => 8,
        Arg::Real(_) => 16,
        Arg::I32(_) | Arg::U32(_) | Arg::F32(_) => 4,
        Arg::Struct(bytes) => bytes.len(),
    };
    let mut seen = std::collections::BTreeSet::new();
    for (case, backward) in cases().iter().chain(&device_cases()).flat_map(|c| [(c, false), (c, true)]) {
        let Some(schedule) = schedule_of(case, backward) else { continue };
        for launch in schedule.steps.iter().flat_map(|s| &s.launches) {
            let taken = kernels::parameters(kernels::IMAGES, launch.module, launch.kernel);
            let sizes: Vec<usize> = launch.args.iter().map(size).collect();
            let given = match joins(launch.module, launch.kernel) {
                true => {
                    let args: Vec<Vec<u8>> = sizes.iter().map(|n| vec![0; *n]).collect();
                    vec![packed(&[launch], &[args]).len()]
                }
                false => sizes,
            };
            assert_eq!(taken, Some(given), "{}::{} of {}", launch.module, launch.kernel, case.name);
            seen.insert(launch.kernel);
        }
    }
    assert!(seen.len() > 50, "{seen:?}");
}

/// Branches of one structure on pictures of different sizes, with everything that can be joined.
fn four_branches() -> (Graph, Vec<(&'static str, Value)>) {
    let mut g = Graph::new();
    let mut ends = Vec::new();
    for (i, (h, w, c)) in [(12, 12, 64), (9, 7, 128), (6, 5, 64), (2, 2, 192)].into_iter().enumerate() {
        let x = g.input(["x0", "x1", "x2", "x3"][i], Shape::new(1, h, w, c));
        let conv = |g: &mut Graph, x: Value, k: usize, co: usize, name: &str| {
            let from = g.shape(x).c();
            let w = g.param(&format!("{name}{i}"), Shape::new(k, k, from, co)).unwrap();
            let b = g.param(&format!("{name}{i}.b"), Shape::vector(co)).unwrap();
            g.conv2d(x, w, Some(b), Conv::new(1, k / 2)).unwrap()
        };
        let y = conv(&mut g, x, 3, c, "a");
        let y = g.group_norm(y, 16, 1e-5, &format!("n{i}")).unwrap();
        let y = g.unary(Unary::Silu, y).unwrap();
        let qkv = conv(&mut g, y, 1, 3 * c, "qkv");
        let attention = Attention { heads: c / 64, layout: QkvLayout::PerHead, causal: false };
        let a = g.attention(qkv, attention).unwrap();
        let y = g.concat(3, &[a, x]).unwrap();
        let y = g.pool(Pool::Avg, y, Window { size: 2, stride: 2, pad: 0 }).unwrap();
        let keys = g.reduce(Reduce::Max, y, [false, true, true, false]).unwrap();
        let best = g.top_k(keys, 24).unwrap();
        let y = g.gather(y, best).unwrap();
        ends.push((["y0", "y1", "y2", "y3"][i], y));
    }
    (g, ends)
}

#[test]
fn joined_launches_give_bit_for_bit_what_they_give_one_by_one() {
    let (g, outputs) = four_branches();
    let mut params = crate::engine::ParamStore::new();
    let mut rng = Stream::new(5, 0, 0, 3).rng();
    let named: Vec<(String, Shape)> = g.params().map(|(n, v)| (n.to_owned(), g.shape(v))).collect();
    for (name, shape) in named {
        let data = (0..shape.len()).map(|_| rng.range(-0.2, 0.2)).collect();
        params.insert(name, crate::engine::Tensor::new(shape, data));
    }
    let gpu = gpu();
    let results = |joined: bool| {
        let none = crate::engine::ParamStore::new();
        let schedule = Schedule::new(&g, &outputs, [&params, &none], A100).unwrap();
        let schedule = if joined { schedule } else { schedule.taken_apart() };
        let kernels: Vec<(&str, usize)> = schedule
            .runs
            .iter()
            .map(|run| (schedule.launch(run.parts[0]).unwrap().1.kernel, run.parts.len()))
            .collect();
        let mut program = Program::of(schedule, &gpu, Priority::High, true, None).unwrap();
        let mut rng = Stream::new(6, 0, 0, 3).rng();
        for name in ["x0", "x1", "x2", "x3"] {
            program.input_mut(name).unwrap().iter_mut().for_each(|v| *v = rng.range(-1.0, 1.0));
        }
        program.poison().unwrap();
        program.run().unwrap();
        let bits = |(name, _): &(&str, Value)| -> Vec<u32> {
            program.output(name).unwrap().iter().map(|v| v.to_bits()).collect()
        };
        (outputs.iter().map(bits).collect::<Vec<_>>(), kernels)
    };
    let ((joined, of), (apart, by)) = (results(true), results(false));
    for kernel in ["conv_", "group_norm_fused", "attention_64", "copy_runs_8", "pool_8", "top_k", "gather"] {
        assert!(of.iter().any(|(k, n)| k.starts_with(kernel) && *n >= 4), "{kernel} was not joined: {of:?}");
    }
    assert!(by.iter().all(|(_, n)| *n == 1));
    assert!(joined == apart, "some bits differ");
}
