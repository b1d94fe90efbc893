//! Placeholders in scenarios: keys, a password and the lab's directory, made anew for every lab.
//!
//! | placeholder | stands for |
//! |---|---|
//! | `${NAME.private}`, `${NAME.public}` | a pair of WireGuard keys, one for each name |
//! | `${password}` | random characters |
//! | `${dir}` | the directory with the files and logs of the lab |

use std::collections::BTreeMap;
use std::path::Path;

use crate::demo::{Role, output_of};
use crate::run::Problem;

/// What placeholders stand for.
#[derive(Debug)]
pub struct Secrets {
    directory: String,
    password: String,
    /// Private and public, by name.
    keys: BTreeMap<String, (String, String)>,
}

impl Secrets {
    /// None yet but the password.
    ///
    /// # Errors
    /// When this program cannot be started again, to make it.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        // Random bytes in base64: as good a password as a key.
        let password = output_of(Role::Tunnel, &["genpsk"], None)?;
        Ok(Self { directory: directory.display().to_string(), password, keys: BTreeMap::new() })
    }

    /// `text` with what its placeholders stand for.
    ///
    /// # Errors
    /// When there is no such placeholder.
    pub fn fill(&mut self, text: &str) -> anyhow::Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) = after
                .split_once('}')
                .ok_or_else(|| Problem::Usage(format!("a placeholder of {text:?} has no \"}}\"")))?;
            filled.push_str(before);
            filled.push_str(&self.value(name)?);
            rest = behind;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn value(&mut self, name: &str) -> anyhow::Result<String> {
        match name.split_once('.') {
            None if name == "password" => Ok(self.password.clone()),
            None if name == "dir" => Ok(self.directory.clone()),
            Some((owner, "private")) => Ok(self.key(owner)?.0.clone()),
            Some((owner, "public")) => Ok(self.key(owner)?.1.clone()),
            _ => Err(Problem::Usage(format!(
                "${{{name}}} stands for nothing: there are ${{NAME.private}}, ${{NAME.public}}, ${{password}} and ${{dir}}"
            ))
            .into()),
        }
    }

    fn key(&mut self, owner: &str) -> anyhow::Result<&(String, String)> {
        if !self.keys.contains_key(owner) {
            let private = output_of(Role::Tunnel, &["genkey"], None)?;
            let public = output_of(Role::Tunnel, &["pubkey"], Some(&private))?;
            self.keys.insert(owner.to_owned(), (private, public));
        }
        Ok(&self.keys[owner])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_wrong_ones_answered_with_those_there_are() {
        let keys = [("a".to_owned(), ("one".to_owned(), "two".to_owned()))].into();
        let mut secrets = Secrets { directory: "/lab".into(), password: "horse".into(), keys };
        let text = "${a.private} ${a.public}${password}, ${dir}/x $HOME {}";
        assert_eq!(secrets.fill(text).unwrap(), "one twohorse, /lab/x $HOME {}");
        for text in ["${a.secret}", "${}", "${name}"] {
            let error = secrets.fill(text).unwrap_err();
            assert!(error.to_string().contains("${NAME.private}"), "{error}");
            assert!(matches!(error.downcast_ref(), Some(Problem::Usage(_))));
        }
        assert!(secrets.fill("x ${a.private").unwrap_err().to_string().contains("has no"));
    }
}
