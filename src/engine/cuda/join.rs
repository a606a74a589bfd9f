//! Which launches run as one, and in which order: pure functions over what an operation reads, writes and
//! launches.
//!
//! A frame of the paper's network is four U-Nets of the same structure. Operations that wait for none of
//! each other and launch the same kernel stand on one level, and their launches become one over several
//! problems (`kernels/joined.cuh`): the U-Nets then take as many launches as one of them.
//!
//! The level of an operation is as late as its readers allow: branches that end together meet there,
//! wherever each began. What is computed late lives short, but what it reads lives long (the gradient of a
//! weight holds two activations until the end), so that an operation waits for `slack` levels at most
//! after it could have run. Where a branch has an operation more than the others, levels never meet again:
//! `in_lockstep` lets the others wait. `schedule` takes what makes the fewest launches.

use std::collections::BTreeMap;

use super::launch::{Arg, Launch};
use super::{conv, norm};

/// Problems of one launch at most, `MOST_JOINED` of joined.cuh.
pub const MOST: usize = 8;
/// Blocks of a flat grid.
const MOST_BLOCKS: u64 = (1 << 31) - 1;

/// Whether a kernel's parameter is `Joined` of joined.cuh.
pub fn joins(module: &str, kernel: &str) -> bool {
    match module {
        "attention" | "conv" | "norm" => true,
        "layout" => kernel.starts_with("copy_runs_") || matches!(kernel, "gather" | "top_k"),
        "pool" => matches!(kernel, "pool_8" | "pool_4" | "pool_1"),
        "residual" => kernel.starts_with("residual_rank_"),
        _ => false,
    }
}

/// What operations have in common whose launches may become one: modules and kernels, for those that can
/// be lowered otherwise together any one of the choices.
pub type Family = Vec<(&'static str, &'static str)>;

/// `None` where one of the kernels cannot be joined.
pub fn family(launches: &[Launch]) -> Option<Family> {
    let general = |l: &Launch| {
        let kernel = match l.module {
            "conv" => conv::general(l.kernel)?,
            "norm" => norm::general(l.kernel),
            _ => l.kernel,
        };
        joins(l.module, l.kernel).then_some((l.module, kernel))
    };
    let mut family: Family = launches.iter().map(general).collect::<Option<_>>()?;
    // Whether a sum is split is decided together; whether partial ranks need adding up is not asked.
    family.retain(|(_, kernel)| ![conv::SUM_SPLITS, "residual_rank_finish"].contains(kernel));
    (!family.is_empty()).then_some(family)
}

/// One operation, as far as its order matters. Numbers name what is read and written.
#[derive(Clone, Debug, Default)]
pub struct Item {
    pub reads: Vec<usize>,
    pub writes: Vec<usize>,
    /// `None` where it runs alone.
    pub family: Option<Family>,
}

/// For each item the earlier ones that it has to follow: who wrote what it reads, who read or wrote what it
/// writes.
pub fn dependences(items: &[Item]) -> Vec<Vec<usize>> {
    let mut writer: BTreeMap<usize, usize> = BTreeMap::new();
    let mut readers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut all = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let mut before: Vec<usize> = item.reads.iter().filter_map(|r| writer.get(r)).copied().collect();
        for w in &item.writes {
            before.extend(writer.get(w));
            before.extend(readers.remove(w).unwrap_or_default());
            writer.insert(*w, i);
        }
        for r in &item.reads {
            readers.entry(*r).or_default().push(i);
        }
        // Who writes what it reads does not wait for itself.
        before.retain(|b| *b != i);
        before.sort_unstable();
        before.dedup();
        all.push(before);
    }
    all
}

/// Every item by itself, as they come.
pub fn in_order(items: &[Item]) -> Vec<Vec<usize>> {
    (0..items.len()).map(|i| vec![i]).collect()
}

/// Groups of items of one family, in an order that respects `before`.
pub fn by_levels(items: &[Item], before: &[Vec<usize>], slack: usize) -> Vec<Vec<usize>> {
    let mut soonest = vec![0usize; items.len()];
    for (i, earlier) in before.iter().enumerate() {
        soonest[i] = earlier.iter().map(|b| soonest[*b] + 1).max().unwrap_or(0);
    }
    let last = soonest.iter().copied().max().unwrap_or(0);
    let mut latest = vec![last; items.len()];
    for (i, earlier) in before.iter().enumerate().rev() {
        for b in earlier {
            latest[*b] = latest[*b].min(latest[i] - 1);
        }
    }
    let mut levels: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, (soonest, latest)) in soonest.iter().zip(&latest).enumerate() {
        // Both terms grow along every dependence, so their minimum does.
        levels.entry(soonest.saturating_add(slack).min(*latest)).or_default().push(i);
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for level in levels.values() {
        let start = groups.len();
        for i in level {
            let family = &items[*i].family;
            let mate = groups[start..].iter_mut().find(|g| family.is_some() && items[g[0]].family == *family);
            match mate {
                Some(group) => group.push(*i),
                None => groups.push(vec![*i]),
            }
        }
    }
    groups
}

/// Groups of items of one family, in an order that respects `before`, from the end to the start: of what
/// may come next the largest group, so that a branch that is ahead waits for the others to catch up. Items
/// that run alone wait for nobody.
pub fn in_lockstep(items: &[Item], before: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut followers = vec![0usize; items.len()];
    before.iter().flatten().for_each(|b| followers[*b] += 1);
    let mut ready: BTreeMap<Option<&Family>, Vec<usize>> = BTreeMap::new();
    for i in (0..items.len()).filter(|i| followers[*i] == 0) {
        ready.entry(items[i].family.as_ref()).or_default().push(i);
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    while let Some((family, _)) = ready.iter().max_by_key(|(f, all)| (f.is_none(), all.len())) {
        let family = *family;
        let Some(group) = ready.remove(&family) else { break };
        let freed = group.iter().flat_map(|i| &before[*i]);
        for b in freed {
            followers[*b] -= 1;
            if followers[*b] == 0 {
                ready.entry(items[*b].family.as_ref()).or_default().push(*b);
            }
        }
        match family {
            Some(_) => groups.push(group),
            None => groups.extend(group.into_iter().map(|i| vec![i])),
        }
    }
    groups.reverse();
    groups.iter_mut().for_each(|g| g.sort_unstable());
    groups
}

/// One launch of an operation, by the operation's and its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub step: usize,
    pub launch: usize,
}

/// Launches that run as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub parts: Vec<Part>,
}

/// The runs of groups of operations, given the launches of each. Those of one operation follow each other,
/// but where they are `beside`: parts of a concatenation wait for none of each other.
pub fn runs(groups: &[Vec<usize>], launches: &[Vec<Launch>], beside: impl Fn(usize) -> bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for group in groups {
        let stages = group.iter().map(|s| launches[*s].len()).max().unwrap_or(0);
        for stage in 0..stages {
            let start = runs.len();
            for &step in group {
                let own = launches[step].len();
                let now = match (beside(step), stage) {
                    (true, 0) => 0..own,
                    (true, _) => 0..0,
                    (false, _) => stage..(stage + 1).min(own),
                };
                for part in now.map(|launch| Part { step, launch }) {
                    let joinable = |r: &&mut Run| can_join(launches, &r.parts, part);
                    match runs[start..].iter_mut().find(joinable) {
                        Some(run) => run.parts.push(part),
                        None => runs.push(Run { parts: vec![part] }),
                    }
                }
            }
        }
    }
    runs
}

fn blocks(launch: &Launch) -> u64 {
    launch.grid.iter().map(|n| u64::from(*n)).fold(1, u64::saturating_mul)
}

fn can_join(launches: &[Vec<Launch>], parts: &[Part], part: Part) -> bool {
    let of = |p: Part| &launches[p.step][p.launch];
    let (first, new) = (of(parts[0]), of(part));
    let all = parts.iter().fold(blocks(new), |sum, p| sum.saturating_add(blocks(of(*p))));
    joins(first.module, first.kernel)
        && (first.module, first.kernel, first.block) == (new.module, new.kernel, new.block)
        && parts.len() < MOST
        && all <= MOST_BLOCKS
}

/// The grid of launches that run as one: a problem by itself keeps its own.
pub fn grid(launches: &[&Launch]) -> [u32; 3] {
    match launches {
        [one] => one.grid,
        several => {
            let all = several.iter().fold(0u64, |sum, l| sum.saturating_add(blocks(l)));
            [u32::try_from(all).unwrap_or(u32::MAX), 1, 1]
        }
    }
}

/// Where an argument may begin in a struct of arguments.
fn alignment(arg: &Arg) -> usize {
    match arg {
        Arg::I32(_) | Arg::U32(_) | Arg::F32(_) => 4,
        // Kernels that can be joined align their structs to 8 bytes.
        Arg::Pointer(_) | Arg::Null | Arg::Real(_) | Arg::Struct(_) => 8,
    }
}

/// `Joined` of joined.cuh. `args`: the bytes of each argument of each launch.
pub fn packed(launches: &[&Launch], args: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = (launches.len() as u32).to_le_bytes().to_vec();
    let mut first = 0u64;
    let starts = launches.iter().map(|l| {
        let start = first;
        first = first.saturating_add(blocks(l));
        u32::try_from(start).unwrap_or(u32::MAX)
    });
    let starts: Vec<u32> = starts.collect();
    let mut eight = |numbers: Vec<u32>, absent: u32| {
        for i in 0..MOST {
            bytes.extend(numbers.get(i).copied().unwrap_or(absent).to_le_bytes());
        }
    };
    eight(starts, u32::MAX);
    eight(launches.iter().map(|l| l.grid[0]).collect(), 1);
    eight(launches.iter().map(|l| l.grid[1]).collect(), 1);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let each: Vec<Vec<u8>> = launches.iter().zip(args).map(|(l, args)| laid_out(&l.args, args)).collect();
    let size = each.first().map_or(0, Vec::len);
    for i in 0..MOST {
        let end = bytes.len() + size;
        bytes.extend(each.get(i).into_iter().flatten());
        bytes.resize(end, 0);
    }
    bytes
}

/// A C struct of these members.
fn laid_out(args: &[Arg], packed: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for (arg, packed) in args.iter().zip(packed) {
        bytes.resize(bytes.len().next_multiple_of(alignment(arg)), 0);
        bytes.extend(packed);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
