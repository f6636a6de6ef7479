//! How long a bus takes: what an emulated card adds to be as slow as a real one. Where the figures come from: `docs/pcie.md`.

use core::fmt;
use core::str::FromStr;

/// Names of profiles with figures of their own.
const NAMED: [Profile; 3] = [
    Profile::NONE,
    Profile {
        name: "bluefield2",
        posted_write_ns: 450,
        dma_write_ns: 1_500,
        dma_read_ns: 2_000,
        interrupt_ns: 1_600,
        jitter_percent: 10,
        seed: 1,
    },
    Profile {
        name: "bluefield3",
        posted_write_ns: 350,
        dma_write_ns: 1_100,
        dma_read_ns: 1_500,
        interrupt_ns: 1_600,
        jitter_percent: 10,
        seed: 1,
    },
];
/// What a profile is called whose figures were given.
const CUSTOM: &str = "custom";
/// Longest time that a step may take, in nanoseconds: far below what processes wait for an answer.
const STEP_MAX_NS: u32 = 10_000_000;

/// Times of a bus, one way unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    name: &'static str,
    /// A store of the host, until the card sees it.
    pub posted_write_ns: u32,
    /// A completion, until the host sees it.
    pub dma_write_ns: u32,
    /// A read of host memory by the card, there and back.
    pub dma_read_ns: u32,
    /// An interrupt, after the completion that it is for.
    pub interrupt_ns: u32,
    /// Each of these is longer by up to so much.
    pub jitter_percent: u32,
    /// Chooses the jitter.
    pub seed: u32,
}

impl Profile {
    /// Nothing is added.
    pub const NONE: Profile = Profile {
        name: "none",
        posted_write_ns: 0,
        dma_write_ns: 0,
        dma_read_ns: 0,
        interrupt_ns: 0,
        jitter_percent: 0,
        seed: 0,
    };

    /// Nothing is added.
    #[must_use]
    pub fn is_none(&self) -> bool {
        [self.posted_write_ns, self.dma_write_ns, self.dma_read_ns, self.interrupt_ns] == [0; 4]
    }

    /// The same bus with other jitter.
    #[must_use]
    pub fn with_seed(self, seed: u32) -> Profile {
        Profile { seed, ..self }
    }

    fn fields(&mut self) -> [(&'static str, &mut u32); 6] {
        [
            ("posted-write-ns", &mut self.posted_write_ns),
            ("dma-write-ns", &mut self.dma_write_ns),
            ("dma-read-ns", &mut self.dma_read_ns),
            ("interrupt-ns", &mut self.interrupt_ns),
            ("jitter-percent", &mut self.jitter_percent),
            ("seed", &mut self.seed),
        ]
    }
}

impl Default for Profile {
    fn default() -> Self {
        Profile::NONE
    }
}

/// As options spell it: a name, then what differs from the figures of that name.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        let mut base = NAMED.into_iter().find(|p| p.name == self.name).unwrap_or_default();
        let mut own = *self;
        for ((field, value), (_, was)) in own.fields().into_iter().zip(base.fields()) {
            if value != was {
                write!(f, ",{field}={value}")?;
            }
        }
        Ok(())
    }
}

/// Not a [`Profile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadProfile {
    /// There is none of this name.
    Name,
    /// There is no such figure, or it is no number.
    Field,
    /// A figure is too large.
    Value,
}

impl fmt::Display for BadProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadProfile::Name => "there is no such bus; use none, bluefield2, bluefield3 or custom",
            BadProfile::Field => {
                "after the name come figures as in bluefield2,posted-write-ns=600: posted-write-ns, dma-write-ns, dma-read-ns, interrupt-ns, jitter-percent, seed"
            }
            BadProfile::Value => "times are at most 10000000 ns, and the jitter at most 1000 per cent",
        })
    }
}

impl core::error::Error for BadProfile {}

impl FromStr for Profile {
    type Err = BadProfile;
    fn from_str(text: &str) -> Result<Profile, BadProfile> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let mut profile = match NAMED.into_iter().find(|profile| profile.name == name) {
            Some(profile) => profile,
            None if name == CUSTOM => Profile { name: CUSTOM, ..Profile::NONE },
            None => return Err(BadProfile::Name),
        };
        for word in words {
            let (field, value) = word.split_once('=').ok_or(BadProfile::Field)?;
            let value = value.parse().map_err(|_| BadProfile::Field)?;
            let max = if field == "jitter-percent" { 1000 } else { STEP_MAX_NS };
            if field != "seed" && value > max {
                return Err(BadProfile::Value);
            }
            let mut fields = profile.fields().into_iter();
            *fields.find(|(known, _)| *known == field).ok_or(BadProfile::Field)?.1 = value;
        }
        // What has figures of its own is not the bus that the name says.
        if profile.name == Profile::NONE.name && profile != Profile::NONE {
            profile.name = CUSTOM;
        }
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_spelt_as_they_are_read() {
        for text in ["none", "bluefield2", "bluefield3,seed=7", "custom,posted-write-ns=5,jitter-percent=20"]
        {
            assert_eq!(text.parse::<Profile>().unwrap().to_string(), text);
        }
        assert_eq!("none,dma-read-ns=3".parse::<Profile>().unwrap().to_string(), "custom,dma-read-ns=3");
        assert!("custom".parse::<Profile>().unwrap().is_none());
        for (text, why) in [
            ("", BadProfile::Name),
            ("bluefield9", BadProfile::Name),
            ("none,x=1", BadProfile::Field),
            ("none,seed", BadProfile::Field),
            ("none,seed=x", BadProfile::Field),
            ("none,dma-read-ns=10000001", BadProfile::Value),
        ] {
            assert_eq!(text.parse::<Profile>(), Err(why), "{text}");
        }
    }
}
