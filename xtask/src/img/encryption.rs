//! Encryption: the options that ask for it at creation, and what `info` tells of it.
//!
//! Keys and salts come from the kernel's generator. Secrets are known by name here, and their bytes go to the
//! engine and nowhere else.

use std::time::{Duration, Instant};

use engine::device::Event;
use engine::luks::{
    self, Algorithm, CipherSpec, Hash, MAX_ITERATIONS, Mode, NewVolume, STRIPES, Secret, Vector,
};
use engine::qcow2::Encryption;
use engine::qcow2::create::NewEncryption;

use super::creation::Creation;
use super::json::Json;
use crate::block::failure::{engine_text, os_text};
use crate::block::open::at_once;
use crate::block::secret::Secrets;
use crate::block::{Failure, Node};

/// Milliseconds that a derivation takes where nobody says.
const ITER_TIME: u64 = 2000;
/// Fewer iterations than these are never taken.
const MIN_ITERATIONS: u32 = 1000;

/// What is told where a key is needed and none is named.
pub(super) const NO_SECRET: &str = "Parameter 'encrypt.key-secret' is required for cipher";

/// The methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Aes,
    Luks,
}

/// What the options of a new image ask for; the secret must be there.
pub(super) fn new_encryption(
    creation: &Creation,
    secrets: &Secrets,
) -> Result<Option<NewEncryption>, Failure> {
    let Some(method) = method(creation)? else {
        return Ok(None);
    };
    let id = creation
        .get("encrypt.key-secret")
        .ok_or_else(|| Failure::new(NO_SECRET))?;
    let secret = Secret::new(secrets.get(id)?.to_vec());
    match method {
        Method::Aes => Ok(Some(NewEncryption::Aes)),
        Method::Luks => volume(creation, &secret).map(NewEncryption::Luks).map(Some),
    }
}

/// How many bytes the options ask for in front of the guest's data; the secret must be named.
pub(super) fn header_bytes(creation: &Creation) -> Result<u64, Failure> {
    let Some(method) = method(creation)? else {
        return Ok(0);
    };
    if creation.get("encrypt.key-secret").is_none() {
        return Err(Failure::new(NO_SECRET));
    }
    match method {
        Method::Aes => Ok(0),
        Method::Luks => {
            let cipher = cipher(creation)?;
            let key_len = u64::try_from(cipher.key_len()).expect("a key is short");
            let material = (key_len * u64::from(STRIPES)).next_multiple_of(4096);
            let slots = u64::try_from(luks::SLOTS).expect("there are eight slots");
            Ok(4096 + slots * material)
        }
    }
}

fn method(creation: &Creation) -> Result<Option<Method>, Failure> {
    let details = [
        "encrypt.cipher-alg",
        "encrypt.cipher-mode",
        "encrypt.ivgen-alg",
        "encrypt.ivgen-hash-alg",
        "encrypt.hash-alg",
        "encrypt.iter-time",
    ];
    let detail = details
        .into_iter()
        .find(|name| creation.get(name).is_some());
    let method = match (creation.get("encryption"), creation.get("encrypt.format")) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ));
        }
        (Some(_), None) if creation.is_on("encryption") => Some(Method::Aes),
        (None, Some("aes")) => Some(Method::Aes),
        (None, Some("luks")) => Some(Method::Luks),
        (None, Some(other)) => return Err(not_accepted("format", other)),
        (Some(_) | None, None) => None,
    };
    match (method, detail) {
        (Some(Method::Aes), Some(detail)) => {
            Err(Failure(format!("Parameter '{detail}' is unexpected")))
        }
        (None, _) if detail.is_some() || creation.get("encrypt.key-secret").is_some() => {
            Err(Failure::new("Parameter 'encrypt.format' is missing"))
        }
        (Some(Method::Aes | Method::Luks) | None, _) => Ok(method),
    }
}

fn not_accepted(name: &str, value: &str) -> Failure {
    Failure(format!(
        "Parameter '{name}' does not accept value '{value}'"
    ))
}

fn hash(creation: &Creation, name: &str) -> Result<Hash, Failure> {
    let value = creation.get(&format!("encrypt.{name}")).unwrap_or("sha256");
    Hash::from_name(value).ok_or_else(|| not_accepted(name, value))
}

fn cipher(creation: &Creation) -> Result<CipherSpec, Failure> {
    let get = |name: &str, default| {
        creation
            .get(&format!("encrypt.{name}"))
            .unwrap_or(default)
            .to_owned()
    };
    let (name, mode, vector) = (
        get("cipher-alg", "aes-256"),
        get("cipher-mode", "xts"),
        get("ivgen-alg", "plain64"),
    );
    let algorithm = name.split_once('-').and_then(|(function, bits)| {
        let len = match bits {
            "128" => 16,
            "192" => 24,
            "256" => 32,
            _ => return None,
        };
        match function {
            "aes" => Some(Algorithm::Aes(len)),
            "serpent" => Some(Algorithm::Serpent(len)),
            "twofish" => Some(Algorithm::Twofish(len)),
            _ => None,
        }
    });
    Ok(CipherSpec {
        algorithm: algorithm.ok_or_else(|| not_accepted("cipher-alg", &name))?,
        mode: match mode.as_str() {
            "xts" => Mode::Xts,
            "cbc" => Mode::Cbc,
            _ => return Err(not_accepted("cipher-mode", &mode)),
        },
        vector: match vector.as_str() {
            "plain" => Vector::Plain,
            "plain64" => Vector::Plain64,
            "essiv" => Vector::Essiv(hash(creation, "ivgen-hash-alg")?),
            _ => return Err(not_accepted("ivgen-alg", &vector)),
        },
    })
}

/// Header and key material of a new volume.
fn volume(creation: &Creation, secret: &Secret) -> Result<Vec<u8>, Failure> {
    let (cipher, hash) = (cipher(creation)?, hash(creation, "hash-alg")?);
    let milliseconds = creation.get("encrypt.iter-time");
    let milliseconds = milliseconds.and_then(|text| text.parse().ok());
    let slot_iterations = iterations(hash, milliseconds.filter(|time| *time != 0))?;
    let new = NewVolume {
        cipher,
        hash,
        slot_iterations,
        digest_iterations: (slot_iterations / 8).max(MIN_ITERATIONS),
    };
    let mut failed = None;
    let bytes = luks::format(&new, secret, &mut |into| {
        if let Err(error) = fill_randomly(into) {
            failed = Some(error);
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    bytes.ok_or_else(|| {
        Failure::new("This combination of cipher, mode and vectors is not supported")
    })
}

/// So many bytes of the kernel's generator.
pub(super) fn random_bytes(len: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; len];
    fill_randomly(&mut bytes)?;
    Ok(bytes)
}

fn fill_randomly(into: &mut [u8]) -> Result<(), Failure> {
    let mut done = 0;
    while done < into.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut into[done..], flags) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let text = os_text(&error.into());
                return Err(Failure(format!("Unable to get random bytes: {text}")));
            }
        }
    }
    Ok(())
}

/// Iterations that take about so many milliseconds on this machine. A negative time is, as in QEMU, a very
/// long one.
pub(super) fn iterations(hash: Hash, milliseconds: Option<i64>) -> Result<u32, Failure> {
    let wanted = milliseconds.map_or(ITER_TIME, i64::cast_unsigned);
    let a_second = iterations_a_second(hash);
    let out_of_range = |what: String| {
        Failure(format!(
            "PBKDF iterations {what}: Numerical result out of range"
        ))
    };
    let count = a_second
        .checked_mul(wanted)
        .ok_or_else(|| out_of_range(format!("{a_second} too large to scale")))?;
    let count = u32::try_from(count / 1000)
        .map_err(|_| out_of_range(format!("{} larger than {}", count / 1000, u32::MAX)))?;
    Ok(count.clamp(MIN_ITERATIONS, MAX_ITERATIONS))
}

fn iterations_a_second(hash: Hash) -> u64 {
    let mut tried: u32 = 1 << 12;
    loop {
        #[expect(
            clippy::disallowed_methods,
            reason = "how many follows from how long they take, and only the command line has a clock"
        )]
        let start = Instant::now();
        hash.derive(b"password", b"salt", tried, &mut [0; 32]);
        let took = start.elapsed();
        if took > Duration::from_millis(20) || tried > MAX_ITERATIONS / 2 {
            let second = Duration::from_secs(1).as_nanos();
            let count = u128::from(tried) * second / took.as_nanos().max(1);
            return u64::try_from(count).unwrap_or(u64::MAX);
        }
        tried *= 2;
    }
}

/// What `info` tells of the encryption of an image, where it has one.
pub(super) fn info(node: &Node) -> Result<Option<Json>, Failure> {
    let Some(encryption) = node.header.as_ref().and_then(|header| header.encryption) else {
        return Ok(None);
    };
    match encryption {
        Encryption::Aes => Ok(Some(Json::Object(vec![("format", "aes".into())]))),
        Encryption::Luks { offset, len_bytes } => {
            let len = usize::try_from(len_bytes.min(4096)).expect("a header is short");
            let area = at_once(node.file.port.at(Event::None).read(offset.0, len))
                .map_err(|error| Failure(engine_text(&error.into())))?;
            luks::Header::decode(&area)
                .map(|header| Some(luks_info(&header)))
                .map_err(Failure)
        }
    }
}

fn luks_info(header: &luks::Header) -> Json {
    let CipherSpec {
        algorithm,
        mode,
        vector,
    } = header.cipher;
    let (Algorithm::Aes(len) | Algorithm::Serpent(len) | Algorithm::Twofish(len)) = algorithm;
    let (vector, vector_hash) = match vector {
        Vector::Plain => ("plain", None),
        Vector::Plain64 => ("plain64", None),
        Vector::Essiv(hash) => ("essiv", Some(hash)),
    };
    let sectors = |count: u32| Json::from(u64::from(count) * 512);
    let slots = header.slots.iter().map(|slot| {
        let mut members = vec![("active", slot.active.into())];
        if slot.active {
            members.push(("iters", u64::from(slot.iterations).into()));
        }
        members.push(("key-offset", sectors(slot.material_sector)));
        if slot.active {
            members.push(("stripes", u64::from(STRIPES).into()));
        }
        Json::Object(members)
    });
    let mut members: Vec<(&'static str, Json)> = vec![
        ("ivgen-alg", vector.into()),
        ("detached-header", false.into()),
        ("hash-alg", header.hash.name().into()),
        (
            "cipher-alg",
            format!("{}-{}", header.cipher.names().0, len * 8).into(),
        ),
        ("uuid", header.uuid.as_str().into()),
    ];
    if let Some(hash) = vector_hash {
        members.push(("ivgen-hash-alg", hash.name().into()));
    }
    members.extend([
        ("format", "luks".into()),
        (
            "cipher-mode",
            match mode {
                Mode::Xts => "xts",
                Mode::Cbc => "cbc",
            }
            .into(),
        ),
        ("slots", Json::List(slots.collect())),
        ("payload-offset", sectors(header.payload_sector)),
        (
            "master-key-iters",
            u64::from(header.digest_iterations).into(),
        ),
    ]);
    Json::Object(members)
}
