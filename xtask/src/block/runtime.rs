//! Options that hold while an image is open, under QEMU's names: discards, zeroes, overlaps, caches.
//!
//! They are read and checked in two steps, as QEMU does: values that mean nothing are refused where they
//! are read, and what does not fit the image or the other options is refused when the image is opened.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::qcow2::header::Header;
use engine::qcow2::{
    CacheSizes, DiscardedCluster, Discards, GuestDiscards, LazyRefcounts, OpenOptions,
    OverlapChecks, Pass, Region,
};
use engine::zeroes::DetectZeroes;

use super::options::Options;
use super::{Failure, size};

/// What the caller said; what is `None` was not mentioned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// What discards and zeroes do to the image, whatever its format.
    pub(crate) generic: Generic,
    lazy_refcounts: Option<bool>,
    no_unref: Option<bool>,
    pass_request: Option<bool>,
    pass_snapshot: Option<bool>,
    pass_other: Option<bool>,
    overlap: Option<String>,
    overlap_template: Option<String>,
    overlap_regions: BTreeMap<Region, bool>,
    caches: Caches,
}

/// Options of images of any format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generic {
    /// `discard`: whether discards reach the image.
    pub(crate) discard: Option<GuestDiscards>,
    /// `detect-zeroes`.
    detect_zeroes: Option<DetectZeroes>,
}

/// Sizes in bytes; the interval in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Caches {
    all: Option<u64>,
    l2: Option<u64>,
    l2_entry: Option<u64>,
    refcounts: Option<u64>,
    clean_interval: Option<u64>,
}

/// The largest L2 cache that QEMU makes unasked.
const MAX_L2_BYTES: u64 = 32 << 20;
/// L2 tables are kept in pieces of this size where they cannot all be kept.
const SMALL_ENTRY_BYTES: u64 = 4096;
/// A cache of refcounts has at least so many clusters.
const MIN_REFCOUNT_CLUSTERS: u64 = 4;
/// How often caches are cleaned, in seconds.
const CLEAN_INTERVAL: u64 = 600;

impl Generic {
    /// Takes out what it knows. What is not mentioned stays as it is.
    pub(crate) fn take(&mut self, options: &mut Options) -> Result<(), Failure> {
        if let Some(text) = options.take("discard") {
            self.discard = Some(match text.as_str() {
                "ignore" | "off" => GuestDiscards::Ignored,
                "unmap" | "on" => GuestDiscards::Obeyed,
                _ => return Err(Failure::new("Invalid discard option")),
            });
        }
        if let Some(text) = options.take("detect-zeroes") {
            let detect = DetectZeroes::from_name(&text);
            self.detect_zeroes =
                Some(detect.ok_or_else(|| Failure(format!("invalid parameter value: {text}")))?);
        }
        Ok(())
    }

    /// What discards do.
    pub(crate) fn discards(self) -> GuestDiscards {
        self.discard.unwrap_or(GuestDiscards::Obeyed)
    }

    /// What is done with writes of zeroes.
    pub(crate) fn detect_zeroes(self) -> DetectZeroes {
        self.detect_zeroes.unwrap_or_default()
    }

    /// Refuses what contradicts itself.
    pub(crate) fn check(self) -> Result<(), Failure> {
        if self.detect_zeroes() == DetectZeroes::Unmap && self.discards() == GuestDiscards::Ignored
        {
            return Err(Failure::new(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ));
        }
        Ok(())
    }
}

impl Runtime {
    /// Takes out the options of qcow2. What is not mentioned stays as it is, unless it means the same as
    /// something that is: all overlap checks at once, or the caches together and apart.
    pub(crate) fn take(&mut self, options: &mut Options) -> Result<(), Failure> {
        let is_given = |key: &&str| options.get(key).is_some();
        if ["overlap-check", "overlap-check.template"]
            .iter()
            .any(is_given)
        {
            self.overlap = None;
            self.overlap_template = None;
            self.overlap_regions.clear();
        }
        if is_given(&"cache-size") {
            self.caches.l2 = None;
            self.caches.refcounts = None;
        } else if ["l2-cache-size", "refcount-cache-size"]
            .iter()
            .any(is_given)
        {
            self.caches.all = None;
        }
        for (key, slot) in [
            ("lazy-refcounts", &mut self.lazy_refcounts),
            ("discard-no-unref", &mut self.no_unref),
            ("pass-discard-request", &mut self.pass_request),
            ("pass-discard-snapshot", &mut self.pass_snapshot),
            ("pass-discard-other", &mut self.pass_other),
        ] {
            *slot = options.take_flag(key)?.or(*slot);
        }
        for (key, slot) in [
            ("overlap-check", &mut self.overlap),
            ("overlap-check.template", &mut self.overlap_template),
        ] {
            *slot = options.take(key).or(slot.take());
        }
        for region in Region::ALL {
            let key = format!("overlap-check.{}", region.name());
            if let Some(on) = options.take_flag(&key)? {
                self.overlap_regions.insert(region, on);
            }
        }
        let caches = &mut self.caches;
        for (key, slot) in [
            ("cache-size", &mut caches.all),
            ("l2-cache-size", &mut caches.l2),
            ("l2-cache-entry-size", &mut caches.l2_entry),
            ("refcount-cache-size", &mut caches.refcounts),
        ] {
            if let Some(text) = options.take(key) {
                *slot = Some(bytes(key, &text)?);
            }
        }
        if let Some(text) = options.take("cache-clean-interval") {
            caches.clean_interval = Some(number("cache-clean-interval", &text)?);
        }
        Ok(())
    }

    /// How an image with this header is to be opened.
    pub(crate) fn open_options(&self, header: &Header) -> Result<OpenOptions, Failure> {
        let caches = self.caches.sizes(header)?;
        self.caches.check_interval()?;
        if self.lazy_refcounts == Some(true) && header.version < 3 {
            return Err(Failure::new(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
            ));
        }
        let overlap_checks = self.overlap_checks()?;
        if self.no_unref == Some(true) && header.version < 3 {
            return Err(Failure::new(
                "discard-no-unref is only supported since qcow2 version 3",
            ));
        }
        self.generic.check()?;
        let lazy = |on| {
            if on {
                LazyRefcounts::On
            } else {
                LazyRefcounts::Off
            }
        };
        Ok(OpenOptions {
            lazy_refcounts: self.lazy_refcounts.map(lazy),
            caches,
            discards: self.discards(),
            detect_zeroes: self.generic.detect_zeroes(),
            overlap_checks,
            ..OpenOptions::default()
        })
    }

    /// How often caches are to be cleaned, if they are.
    pub(crate) fn clean_interval(&self) -> Option<Duration> {
        let seconds = self.caches.clean_interval.unwrap_or(CLEAN_INTERVAL);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    fn discards(&self) -> Discards {
        let defaults = Discards::default();
        let pass = |said: Option<bool>, unsaid| match said {
            None => unsaid,
            Some(true) => Pass::Yes,
            Some(false) => Pass::No,
        };
        let guest = self.generic.discards();
        let request = match guest {
            GuestDiscards::Ignored => Pass::No,
            GuestDiscards::Obeyed => Pass::Yes,
        };
        Discards {
            guest,
            cluster: if self.no_unref == Some(true) {
                DiscardedCluster::Kept
            } else {
                DiscardedCluster::Freed
            },
            request: pass(self.pass_request, request),
            snapshot: pass(self.pass_snapshot, defaults.snapshot),
            other: pass(self.pass_other, defaults.other),
            ..defaults
        }
    }

    fn overlap_checks(&self) -> Result<OverlapChecks, Failure> {
        let name = match (&self.overlap, &self.overlap_template) {
            (Some(one), Some(other)) if one != other => {
                return Err(Failure(format!(
                    "Conflicting values for qcow2 options 'overlap-check' ('{one}') and \
                     'overlap-check.template' ('{other}')"
                )));
            }
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => "cached",
        };
        let mut checks = OverlapChecks::from_name(name).ok_or_else(|| {
            Failure(format!(
                "Unsupported value '{name}' for qcow2 option 'overlap-check'. Allowed are any of the \
                 following: none, constant, cached, all"
            ))
        })?;
        for (region, on) in &self.overlap_regions {
            checks = if *on {
                checks.with(*region)
            } else {
                checks.without(*region)
            };
        }
        Ok(checks)
    }
}

impl Caches {
    fn is_default(self) -> bool {
        self.all.is_none()
            && self.l2.is_none()
            && self.l2_entry.is_none()
            && self.refcounts.is_none()
    }

    /// How many slices of which size are kept.
    fn sizes(self, header: &Header) -> Result<CacheSizes, Failure> {
        let cluster = header.geometry.cluster_bytes();
        let entries = header.virtual_bytes.div_ceil(cluster);
        let needed = (entries * header.geometry.l2_entry_bytes()).next_multiple_of(cluster);
        let (l2, refcounts) = self.shares(needed, cluster)?;
        let small = l2 < needed && self.l2_entry.is_none();
        let entry = if small {
            SMALL_ENTRY_BYTES.min(cluster)
        } else {
            self.l2_entry.unwrap_or(cluster)
        };
        if !entry.is_power_of_two() || !(512..=cluster).contains(&entry) {
            return Err(Failure(format!(
                "L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
            )));
        }
        let most = u64::from(u32::MAX >> 1);
        if l2 / entry > most {
            return Err(Failure::new("L2 cache size too big"));
        }
        if refcounts / cluster > most {
            return Err(Failure::new("Refcount cache size too big"));
        }
        if self.is_default() {
            return Ok(CacheSizes::default());
        }
        let slices = |bytes: u64| usize::try_from(bytes / entry).unwrap_or(usize::MAX);
        Ok(CacheSizes {
            l2_slices: slices(l2.max(2 * entry)),
            refcount_slices: slices(refcounts.max(MIN_REFCOUNT_CLUSTERS * cluster)),
            slice_bytes: entry,
        })
    }

    /// What L2 tables and refcounts get, in bytes, where all L2 tables take `needed`.
    fn shares(self, needed: u64, cluster: u64) -> Result<(u64, u64), Failure> {
        let min_refcounts = MIN_REFCOUNT_CLUSTERS * cluster;
        let Some(all) = self.all else {
            let l2 = self.l2.unwrap_or(MAX_L2_BYTES).min(needed);
            return Ok((l2, self.refcounts.unwrap_or(min_refcounts)));
        };
        if self.l2.is_some() && self.refcounts.is_some() {
            return Err(Failure::new(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
            ));
        }
        let rest = |part: u64, key: &str| {
            all.checked_sub(part)
                .ok_or_else(|| Failure(format!("{key} may not exceed cache-size")))
        };
        Ok(match (self.l2, self.refcounts) {
            (Some(l2), _) => (l2.min(needed), rest(l2, "l2-cache-size")?),
            (None, Some(refcounts)) => {
                let l2 = rest(refcounts, "refcount-cache-size")?;
                (l2.min(needed), refcounts)
            }
            (None, None) if all >= needed.saturating_add(min_refcounts) => (needed, all - needed),
            (None, None) => {
                let refcounts = all.min(min_refcounts);
                (all - refcounts, refcounts)
            }
        })
    }

    fn check_interval(self) -> Result<(), Failure> {
        match self.clean_interval {
            Some(seconds) if seconds > u64::from(u32::MAX) => {
                Err(Failure::new("Cache clean interval too big"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn bytes(key: &str, text: &str) -> Result<u64, Failure> {
    let out_of_range = || {
        Failure(format!(
            "Value '{text}' is out of range for parameter '{key}'"
        ))
    };
    if text.starts_with('-') && size::parse(&text[1..]).is_ok() {
        return Err(out_of_range());
    }
    size::parse(text).map_err(|bad| match bad {
        size::BadSize::TooLarge => out_of_range(),
        size::BadSize::Syntax => Failure(format!(
            "Parameter '{key}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        )),
    })
}

/// A plain number, which may be negative and then stands for what is so much below 2^64.
fn number(key: &str, text: &str) -> Result<u64, Failure> {
    let bad = || Failure(format!("Parameter '{key}' expects a number"));
    match text.strip_prefix('-') {
        Some(digits) => digits.parse().map(u64::wrapping_neg).map_err(|_| bad()),
        None => text.parse().map_err(|_| bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn caches_are_shared_out_as_by_qemu() {
        let cluster = 1 << 16;
        let shares = |all, l2, refcounts| {
            let caches = Caches {
                all,
                l2,
                refcounts,
                ..Caches::default()
            };
            caches.shares(8 * MIB, cluster)
        };
        let least = 4 * cluster;
        assert_eq!(shares(None, None, None), Ok((8 * MIB, least)));
        assert_eq!(shares(None, Some(MIB), Some(MIB)), Ok((MIB, MIB)));
        assert_eq!(shares(Some(16 * MIB), None, None), Ok((8 * MIB, 8 * MIB)));
        assert_eq!(shares(Some(MIB), None, None), Ok((MIB - least, least)));
        assert_eq!(shares(Some(0), None, None), Ok((0, 0)));
        assert_eq!(shares(Some(4 * MIB), Some(MIB), None), Ok((MIB, 3 * MIB)));
        assert_eq!(shares(Some(4 * MIB), None, Some(MIB)), Ok((3 * MIB, MIB)));
        assert!(shares(Some(MIB), Some(2 * MIB), None).is_err());
    }

    #[test]
    fn what_was_said_last_counts() {
        let mut runtime = Runtime::default();
        let mut take = |text: &str| runtime.take(&mut Options::from_list(text));
        take("overlap-check=all,pass-discard-other=on,cache-clean-interval=0").unwrap();
        take("overlap-check.active-l2=off,pass-discard-other=off").unwrap();
        assert!(take("discard-no-unref=maybe").is_err());
        assert_eq!(runtime.pass_other, Some(false));
        assert_eq!(runtime.clean_interval(), None);
        let checks = OverlapChecks::all().without(Region::ActiveL2);
        assert_eq!(runtime.overlap_checks(), Ok(checks));
    }
}
