//! `--object secret,..`: secrets that options refer to by name.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;

use super::Failure;
use super::options::Options;

/// The secrets that a command line defined. Their bytes are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secrets(BTreeMap<String, Vec<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    /// Takes in the argument of `--object`.
    pub(crate) fn define(&mut self, text: &str) -> Result<(), Failure> {
        let (kind, rest) = text.split_once(',').unwrap_or((text, ""));
        let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
        if kind != "secret" {
            return Err(Failure(format!(
                "The object type '{kind}' is not supported"
            )));
        }
        let mut options = Options::from_list(rest);
        let id = options
            .take("id")
            .ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
        let bytes = secret_bytes(&mut options)?;
        if let Some(key) = options.first_key() {
            return Err(Failure(format!("Parameter '{key}' is unexpected")));
        }
        if self.0.insert(id.clone(), bytes).is_some() {
            return Err(Failure(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        Ok(())
    }

    /// The secret of that name.
    pub(crate) fn get(&self, id: &str) -> Result<&[u8], Failure> {
        self.0
            .get(id)
            .map(Vec::as_slice)
            .ok_or_else(|| Failure(format!("No secret with id '{id}'")))
    }
}

fn secret_bytes(options: &mut Options) -> Result<Vec<u8>, Failure> {
    let base64 = match options.take("format").as_deref() {
        None | Some("raw") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Failure(format!(
                "Parameter 'format' does not accept value '{other}'"
            )));
        }
    };
    let bytes = match (options.take("data"), options.take("file")) {
        (Some(data), None) => data.into_bytes(),
        (None, Some(file)) => std::fs::read(&file).map_err(|error| {
            Failure(format!(
                "Unable to read {file}: {}",
                super::failure::os_text(&error)
            ))
        })?,
        (Some(_), Some(_)) => {
            return Err(Failure::new("'file' and 'data' are mutually exclusive"));
        }
        (None, None) => {
            return Err(Failure::new("Must provide 'file' or 'data' property"));
        }
    };
    if !base64 {
        return Ok(bytes);
    }
    base64::engine::general_purpose::STANDARD
        .decode(bytes.trim_ascii())
        .map_err(|_| Failure::new("Base64 data is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_by_its_name_and_never_shown() {
        let mut secrets = Secrets::default();
        secrets.define("secret,id=s,data=hunter2").unwrap();
        secrets
            .define("secret,id=b,data=aGk=,format=base64")
            .unwrap();
        assert_eq!(secrets.get("s"), Ok(b"hunter2".as_slice()));
        assert_eq!(secrets.get("b"), Ok(b"hi".as_slice()));
        assert!(secrets.get("t").is_err());
        assert!(!format!("{secrets:?}").contains("hunter2"));
        assert!(secrets.define("secret,id=s,data=again").is_err());
        assert!(secrets.define("rng,id=x").is_err());
    }
}
