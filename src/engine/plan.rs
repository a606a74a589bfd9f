//! Where each intermediate lies in one arena: values that are never alive together share memory.

/// A buffer needed from step `first` to step `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Length in elements.
    pub len: usize,
    pub first: usize,
    pub last: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Offset of each request, elements; a multiple of `ALIGN`.
    pub offsets: Vec<usize>,
    /// Length of the arena, elements.
    pub len: usize,
}

/// Elements per cache line: every buffer starts on one.
pub const ALIGN: usize = 16;

/// Largest first, each at the lowest offset where it meets no buffer of an overlapping lifetime. Within a
/// few per cent of the lower bound (the largest sum alive at one step) for the networks here.
pub fn plan(requests: &[Request]) -> Plan {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(requests[*i].len), requests[*i].first, *i));
    let mut offsets = vec![0; requests.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(requests.len());
    let mut len = 0;
    let mut taken: Vec<(usize, usize)> = Vec::new();
    for i in order {
        let r = requests[i];
        let size = r.len.next_multiple_of(ALIGN);
        taken.clear();
        taken.extend(placed.iter().filter(|j| overlaps(r, requests[**j])).map(|j| {
            let start = offsets[*j];
            (start, start + requests[*j].len.next_multiple_of(ALIGN))
        }));
        taken.sort_unstable();
        let mut at = 0;
        for (start, end) in &taken {
            if at + size <= *start {
                break;
            }
            at = at.max(*end);
        }
        offsets[i] = at;
        len = len.max(at + size);
        placed.push(i);
    }
    Plan { offsets, len }
}

fn overlaps(a: Request, b: Request) -> bool {
    a.first <= b.last && b.first <= a.last
}

/// The largest sum of lengths alive at one step: no arena can be smaller.
pub fn lower_bound(requests: &[Request]) -> usize {
    let steps = requests.iter().map(|r| r.last + 1).max().unwrap_or(0);
    let alive = |step: usize| {
        requests
            .iter()
            .filter(|r| r.first <= step && step <= r.last)
            .map(|r| r.len.next_multiple_of(ALIGN))
            .sum::<usize>()
    };
    (0..steps).map(alive).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::philox::Stream;

    #[test]
    fn buffers_alive_together_never_share_memory() {
        for seed in 0..20 {
            let mut rng = Stream::new(seed, 0, 0, 0).rng();
            let requests: Vec<Request> =
                (0..60).map(|i| Request { len: rng.below(500), first: i, last: i + rng.below(12) }).collect();
            let plan = plan(&requests);
            for (i, a) in requests.iter().enumerate() {
                assert!(
                    plan.offsets[i].is_multiple_of(ALIGN) && plan.offsets[i] + a.len <= plan.len,
                    "seed {seed}"
                );
                for (j, b) in requests.iter().enumerate().skip(i + 1) {
                    let apart = plan.offsets[i] + a.len <= plan.offsets[j]
                        || plan.offsets[j] + b.len <= plan.offsets[i];
                    assert!(apart || a.len * b.len == 0 || !overlaps(*a, *b), "seed {seed}: {i} and {j}");
                }
            }
            assert!(plan.len >= lower_bound(&requests), "seed {seed}");
        }
    }

    #[test]
    fn a_chain_of_equal_buffers_needs_two() {
        let requests: Vec<Request> = (0..10).map(|i| Request { len: 64, first: i, last: i + 1 }).collect();
        assert_eq!(plan(&requests).len, 128);
    }
}
