//! The options of blkdebug: rules, limits and permissions, with QEMU's refusals.

use blkdebug::config::{BlockLimits, LimitKey, Section, SectionKind, Sections, nearest};
use engine::device::{Claim, Permission};

use super::Failure;
use super::options::Options;
use super::size::{self, BadSize};

/// What options say to a blkdebug device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlkdebugOptions {
    /// The name of a configuration file; empty for none.
    pub(crate) config: String,
    /// Rules besides those of the file.
    pub(crate) rules: Sections,
    /// The limits of requests.
    pub(crate) limits: BlockLimits,
    /// What is claimed on the file besides (`take-child-perms`).
    pub(crate) take: Permissions,
    /// What is refused to others besides (`unshare-child-perms`).
    pub(crate) unshare: Permissions,
}

/// A set of permissions, by bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Permissions(usize);

/// The permissions of each set of bits.
const SETS: [&[Permission]; 16] = {
    use Permission::{ConsistentRead as C, Resize as R, Write as W, WriteUnchanged as U};
    [
        &[],
        &[C],
        &[W],
        &[C, W],
        &[U],
        &[C, U],
        &[W, U],
        &[C, W, U],
        &[R],
        &[C, R],
        &[W, R],
        &[C, W, R],
        &[U, R],
        &[C, U, R],
        &[W, U, R],
        &[C, W, U, R],
    ]
};

const KEYS: [&str; 13] = [
    "align",
    "config",
    "image",
    "inject-error",
    "max-discard",
    "max-transfer",
    "max-write-zero",
    "opt-discard",
    "opt-write-zero",
    "set-state",
    "take-child-perms",
    "unshare-child-perms",
    "driver",
];

impl Permissions {
    fn of(permissions: &[Permission]) -> Self {
        Self(permissions.iter().map(|one| Self::bit(*one)).sum())
    }

    fn bit(permission: Permission) -> usize {
        match permission {
            Permission::ConsistentRead => 1,
            Permission::Write => 2,
            Permission::WriteUnchanged => 4,
            Permission::Resize => 8,
        }
    }

    /// The permissions of both.
    pub(crate) fn with(self, others: &[Permission]) -> &'static [Permission] {
        SETS[self.0 | Self::of(others).0]
    }

    /// Reads a list: `key.0`, `key.1` and so on.
    fn take(key: &str, options: &mut Options) -> Result<Self, Failure> {
        let mut list = options.take_below(key);
        let mut set = Self::default();
        for index in 0_usize.. {
            let Some(name) = list.take(&index.to_string()) else {
                break;
            };
            set.0 |= Self::bit(permission(&name)?);
        }
        match list.first_key().map(str::parse::<usize>) {
            None => Ok(set),
            Some(Ok(_)) => Err(Failure(format!(
                "List indices of '{key}' are not contiguous"
            ))),
            Some(Err(_)) => Err(unknown(&format!(
                "{key}.{}",
                list.first_key().unwrap_or_default()
            ))),
        }
    }
}

fn permission(name: &str) -> Result<Permission, Failure> {
    match name {
        "consistent-read" => Ok(Permission::ConsistentRead),
        "write" => Ok(Permission::Write),
        "write-unchanged" => Ok(Permission::WriteUnchanged),
        "resize" => Ok(Permission::Resize),
        other => {
            let names = ["consistent-read", "write", "write-unchanged", "resize"];
            let hint = hint(nearest(other, names));
            Err(Failure(format!(
                "Parameter 'null' does not accept value '{other}'{hint}"
            )))
        }
    }
}

fn hint(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" (did you mean '{name}'?)"))
}

fn unknown(key: &str) -> Failure {
    let first = key.split('.').next().unwrap_or_default();
    let hint = match nearest(first, KEYS) {
        Some(name) if name != first => hint(Some(name)),
        _ => String::new(),
    };
    Failure(format!(
        "Block protocol 'blkdebug' doesn't support the option '{key}'{hint}"
    ))
}

impl BlkdebugOptions {
    /// Takes out of `options` what is said to blkdebug itself, and refuses what is left.
    pub(crate) fn take(mut options: Options) -> Result<Self, Failure> {
        let config = options.take("config").unwrap_or_default();
        let rules = take_rules(&mut options)?;
        let mut limits = BlockLimits::default();
        for key in LimitKey::ALL {
            if let Some(text) = options.take(key.name()) {
                limits.set(key, bytes(key.name(), &text)?);
            }
        }
        let limits_are = limits.check();
        limits_are.map_err(|bad| Failure(bad.to_string()))?;
        let take = Permissions::take("take-child-perms", &mut options)?;
        let unshare = Permissions::take("unshare-child-perms", &mut options)?;
        match options.first_key() {
            Some(key) => Err(unknown(key)),
            None => Ok(Self {
                config,
                rules,
                limits,
                take,
                unshare,
            }),
        }
    }

    /// Whether the caller wants to be known as one that writes.
    pub(crate) fn takes_writing(&self) -> bool {
        let writing = [Permission::Write, Permission::WriteUnchanged];
        self.take.0 & Permissions::of(&writing).0 != 0
    }

    /// A claim, and what the caller wants claimed besides.
    pub(crate) fn claim(&self, claim: Claim) -> Claim {
        Claim {
            uses: self.take.with(claim.uses),
            refuses: self.unshare.with(claim.refuses),
        }
    }
}

/// A number of bytes, in QEMU's words where it is none.
fn bytes(key: &str, text: &str) -> Result<u64, Failure> {
    if text.trim_start().starts_with('-') {
        return Err(Failure(format!(
            "Value '{text}' is out of range for parameter '{key}'"
        )));
    }
    size::parse(text).map_err(|bad| match bad {
        BadSize::TooLarge => Failure(format!(
            "Value '{text}' is out of range for parameter '{key}'"
        )),
        BadSize::Syntax => Failure(format!(
            "Parameter '{key}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        )),
    })
}

/// The rules that options `inject-error.N.key` and `set-state.N.key` give. A single one needs no number.
fn take_rules(options: &mut Options) -> Result<Sections, Failure> {
    let mut rules = Sections::default();
    for kind in SectionKind::ALL {
        let name = kind.name();
        let mut all = options.take_below(name);
        let is_single = all.first_key().is_some()
            && all
                .keys()
                .all(|key| !key.contains('.') && key.parse::<usize>().is_err());
        if is_single {
            rules.add(section(kind, all)?);
            continue;
        }
        for index in 0_usize.. {
            let index = index.to_string();
            if all.get(&index).is_some() {
                return Err(Failure(format!(
                    "[{name}] section (index {index}) does not consist of keys"
                )));
            }
            let one = all.take_below(&index);
            if one.is_empty() {
                break;
            }
            rules.add(section(kind, one)?);
        }
        if let Some(key) = all.first_key() {
            return Err(Failure(format!("Unused option '{key}' for [{name}]")));
        }
    }
    Ok(rules)
}

fn section(kind: SectionKind, mut options: Options) -> Result<Section, Failure> {
    let mut section = Section::new(kind);
    while let Some(key) = options.first_key().map(str::to_owned) {
        let value = options.take(&key).unwrap_or_default();
        section.set(&key, &value).map_err(|problem| {
            let hint = problem.hint().map(|hint| format!(" ({hint})"));
            Failure(format!("{problem}{}", hint.unwrap_or_default()))
        })?;
    }
    Ok(section)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> Result<BlkdebugOptions, Failure> {
        BlkdebugOptions::take(Options::from_list(text))
    }

    fn refused(text: &str) -> String {
        taken(text).unwrap_err().0
    }

    #[test]
    fn rules_come_numbered_or_alone() {
        let count = |text: &str| {
            let config = taken(text).unwrap().rules.config().unwrap();
            (config.injections.len(), config.transitions.len())
        };
        assert_eq!(
            count("inject-error.0.event=none,inject-error.1.event=l2_load,set-state.0.event=none"),
            (2, 1)
        );
        assert_eq!(
            count("inject-error.event=none,inject-error.errno=28"),
            (1, 0)
        );
        assert_eq!(
            refused("inject-error.0.evnt=none"),
            "[inject-error] section doesn't support the option 'evnt' (did you mean 'event'?)"
        );
        assert_eq!(
            refused("inject-error.0=x"),
            "[inject-error] section (index 0) does not consist of keys"
        );
        assert_eq!(
            refused("inject-error.1.event=none"),
            "Unused option '1.event' for [inject-error]"
        );
    }

    #[test]
    fn limits_and_unknown_options_are_refused_as_qemu_refuses_them() {
        let limits = taken("align=4k,max-transfer=64k").unwrap().limits;
        assert_eq!((limits.align, limits.max_transfer), (4096, 65536));
        assert_eq!(refused("align=3"), "Cannot meet constraints with align 3");
        assert_eq!(
            refused("align=-1"),
            "Value '-1' is out of range for parameter 'align'"
        );
        assert!(refused("align=x").starts_with("Parameter 'align' expects a non-negative number"));
        assert_eq!(
            refused("aling=512"),
            "Block protocol 'blkdebug' doesn't support the option 'aling' (did you mean 'align'?)"
        );
        assert_eq!(
            refused("zzz.y=512"),
            "Block protocol 'blkdebug' doesn't support the option 'zzz.y'"
        );
    }

    #[test]
    fn permissions_are_added_to_a_claim() {
        let options = taken(
            "take-child-perms.0=resize,unshare-child-perms.0=write,unshare-child-perms.1=resize",
        );
        let options = options.unwrap();
        assert!(!options.takes_writing());
        assert!(taken("take-child-perms.0=write").unwrap().takes_writing());
        let claim = options.claim(Claim::READER);
        assert_eq!(claim.uses, [Permission::ConsistentRead, Permission::Resize]);
        assert_eq!(claim.refuses, [Permission::Write, Permission::Resize]);
        assert!(refused("take-child-perms.0=wrte").contains("did you mean 'write'?"));
        assert!(refused("take-child-perms.1=write").contains("not contiguous"));
        for (index, set) in SETS.iter().enumerate() {
            assert_eq!(Permissions::of(set).0, index);
        }
    }
}
