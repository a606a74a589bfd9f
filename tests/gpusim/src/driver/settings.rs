//! What the environment (`GPUSIM_*`) or a test (`gpusim_set`) asks of the simulation.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `GPUSIM_SEED` | every random choice follows from it | 1 |
//! | `GPUSIM_ORDER` | of streams, blocks and warps: `forward`, `reverse`, `random` | `random` |
//! | `GPUSIM_CHECK` | `0`: no memory and race checks | 1 |
//! | `GPUSIM_MEMORY` | device memory, bytes | 4 GiB |
//! | `GPUSIM_FAIL` | what fails, see [`super::inject`] | nothing |
//! | `GPUSIM_COUNTERS` | a file that gets one line of JSON per kernel run | none |
//! | `GPUSIM_COPIES` | a file that gets one line of JSON per copy from the host that was run | none |
//! | `GPUSIM_THREADS` | host threads that run blocks | all cores |

use super::inject::Injection;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    Forward,
    Reverse,
    Random,
}

#[derive(Debug)]
pub struct Settings {
    pub seed: u64,
    pub sequence: Sequence,
    pub check: bool,
    pub memory: usize,
    pub fail: Injection,
    pub counters: Option<String>,
    pub copies: Option<String>,
    pub threads: usize,
}

/// The environment variables, and the keys of `gpusim_set` once `GPUSIM_` is off.
const KEYS: [&str; 8] = ["SEED", "ORDER", "CHECK", "MEMORY", "FAIL", "COUNTERS", "COPIES", "THREADS"];

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seed: 1,
            sequence: Sequence::Random,
            check: true,
            memory: 4 << 30,
            fail: Injection::default(),
            counters: None,
            copies: None,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
        }
    }
}

impl Settings {
    /// A wrong value ends the process: a test that believes it runs with checks must not run without.
    pub fn from_env() -> Self {
        let mut settings = Settings::default();
        for key in KEYS {
            let Some(value) = std::env::var_os(format!("GPUSIM_{key}")) else { continue };
            if let Err(why) = settings.set(key, &value.to_string_lossy()) {
                eprintln!("simulated GPU: GPUSIM_{key}: {why}");
                std::process::exit(64);
            }
        }
        settings
    }

    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("'{value}' is no whole number"));
        match key {
            "SEED" => self.seed = number()?,
            "ORDER" => {
                self.sequence = match value {
                    "forward" => Sequence::Forward,
                    "reverse" => Sequence::Reverse,
                    "random" => Sequence::Random,
                    _ => return Err(format!("'{value}' is none of forward, reverse, random")),
                }
            }
            "CHECK" => {
                self.check = match value {
                    "0" => false,
                    "1" => true,
                    _ => return Err(format!("'{value}' is neither 0 nor 1")),
                }
            }
            "MEMORY" => self.memory = usize::try_from(number()?).unwrap_or(usize::MAX),
            "FAIL" => self.fail = Injection::parse(value)?,
            "COUNTERS" => self.counters = Some(value.to_owned()).filter(|v| !v.is_empty()),
            "COPIES" => self.copies = Some(value.to_owned()).filter(|v| !v.is_empty()),
            "THREADS" => self.threads = number()?.clamp(1, 256) as usize,
            _ => return Err(format!("'{key}' is none of {}", KEYS.join(", "))),
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and every seed is a good one.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_a_wrong_one_is_named() {
        let mut s = Settings::default();
        for (key, value) in [("SEED", "7"), ("ORDER", "reverse"), ("CHECK", "0"), ("MEMORY", "4096")] {
            s.set(key, value).unwrap();
        }
        assert_eq!((s.seed, s.sequence, s.check, s.memory), (7, Sequence::Reverse, false, 4096));
        assert!(s.set("ORDER", "sideways").unwrap_err().contains("sideways"));
        assert!(s.set("CHECK", "no").is_err());
        assert!(s.set("SPEED", "1").unwrap_err().contains("SEED"));
    }
}
