//! Failures on demand: `GPUSIM_FAIL="alloc:3,launch:17,copy:5,launch-sticky:40"`.
//!
//! `kind:n` lets the n-th call of that kind fail, counted from the setting on; `kind:n+` that and all
//! later ones. Kinds:
//!
//! | kind | counts | answer |
//! |---|---|---|
//! | `alloc` | allocations of device memory | out of memory |
//! | `host-alloc` | allocations and registrations of pinned memory | out of memory |
//! | `copy` | calls of copies and fills | operating system error, nothing is queued |
//! | `launch` | calls that launch a kernel or a graph | out of resources, nothing is queued |
//! | `module` | module loads | out of memory |
//! | `context` | retains of the primary context | no device |
//! | `copy-sticky` | copies as they run, also those in graphs | ECC error, the context is lost |
//! | `launch-sticky` | kernels as they run, also those in graphs | launch failure, the context is lost |

use super::status::{
    ECC_UNCORRECTABLE, LAUNCH_FAILED, LAUNCH_OUT_OF_RESOURCES, NO_DEVICE, OPERATING_SYSTEM, OUT_OF_MEMORY,
    Status,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Alloc,
    HostAlloc,
    Copy,
    Launch,
    Module,
    Context,
    CopySticky,
    LaunchSticky,
}

const KINDS: [(&str, Kind, Status); 8] = [
    ("alloc", Kind::Alloc, OUT_OF_MEMORY),
    ("host-alloc", Kind::HostAlloc, OUT_OF_MEMORY),
    ("copy", Kind::Copy, OPERATING_SYSTEM),
    ("launch", Kind::Launch, LAUNCH_OUT_OF_RESOURCES),
    ("module", Kind::Module, OUT_OF_MEMORY),
    ("context", Kind::Context, NO_DEVICE),
    ("copy-sticky", Kind::CopySticky, ECC_UNCORRECTABLE),
    ("launch-sticky", Kind::LaunchSticky, LAUNCH_FAILED),
];

#[derive(Clone, Copy, Debug)]
struct Planned {
    /// Calls of the kind until the one that fails; 0 once it has.
    left: u64,
    for_good: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Injection {
    planned: [Option<Planned>; KINDS.len()],
}

impl Injection {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut injection = Injection::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (kind, nth) = part.split_once(':').ok_or_else(|| format!("'{part}' is not kind:n"))?;
            injection.plan(kind, nth)?;
        }
        Ok(injection)
    }

    /// `nth` as in `kind:nth`; `0` takes the plan back.
    pub fn plan(&mut self, kind: &str, nth: &str) -> Result<(), String> {
        let Some(i) = KINDS.iter().position(|(name, ..)| *name == kind) else {
            let names: Vec<&str> = KINDS.iter().map(|(name, ..)| *name).collect();
            return Err(format!("'{kind}' is none of {}", names.join(", ")));
        };
        let (digits, for_good) = match nth.strip_suffix('+') {
            Some(digits) => (digits, true),
            None => (nth, false),
        };
        let left: u64 = digits.parse().map_err(|_| format!("'{nth}' is no number, nor one with a +"))?;
        self.planned[i] = (left > 0).then_some(Planned { left, for_good });
        Ok(())
    }

    /// Counts one call; the answer it gets instead of its own.
    pub fn count(&mut self, kind: Kind) -> Result<(), Status> {
        let Some(i) = KINDS.iter().position(|(_, k, _)| *k == kind) else { return Ok(()) };
        let Some(planned) = &mut self.planned[i] else { return Ok(()) };
        planned.left = planned.left.saturating_sub(1);
        if planned.left > 0 {
            return Ok(());
        }
        let (name, _, status) = KINDS[i];
        if !planned.for_good {
            self.planned[i] = None;
        }
        eprintln!("simulated GPU: a planned failure: {name}");
        Err(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_once_and_with_a_plus_every_later_one_does() {
        let mut plan = Injection::parse("alloc:2, launch:1+").unwrap();
        let allocs: Vec<bool> = (0..4).map(|_| plan.count(Kind::Alloc).is_err()).collect();
        assert_eq!(allocs, [false, true, false, false]);
        assert!((0..3).all(|_| plan.count(Kind::Launch) == Err(LAUNCH_OUT_OF_RESOURCES)));
        assert_eq!(plan.count(Kind::Copy), Ok(()));
        plan.plan("launch", "0").unwrap();
        assert_eq!(plan.count(Kind::Launch), Ok(()));
    }

    #[test]
    fn a_plan_that_cannot_be_read_is_refused_with_the_kinds_there_are() {
        assert!(Injection::parse("alloc").is_err());
        assert!(Injection::parse("alloc:many").is_err());
        assert!(Injection::parse("free:1").unwrap_err().contains("host-alloc"));
    }
}
