//! The syntax of turnserver.conf: a name and perhaps a value a line, `#` before a comment.

/// One option that is set.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    /// Its line, from one.
    pub line: usize,
    /// Its name.
    pub name: &'a str,
    /// Its value, which may be a secret; empty when there is none.
    pub value: &'a str,
}

impl Entry<'_> {
    /// Whether the value takes back what the option alone would say.
    pub fn is_off(&self) -> bool {
        ["0", "off", "no", "false", "f"].iter().any(|word| self.value.eq_ignore_ascii_case(word))
    }
}

/// The options of a file, in its order. Name and value are parted by `=` or blanks, and quotes around a value are not part of it,
/// as coturn reads them.
pub fn entries(text: &str) -> impl Iterator<Item = Entry<'_>> {
    (1..).zip(text.lines()).filter_map(|(line, content)| {
        let content = content.trim();
        if content.is_empty() || content.starts_with('#') {
            return None;
        }
        let is_between = |letter: char| letter == '=' || letter == ' ' || letter == '\t';
        let (name, value) = content.split_once(is_between).unwrap_or((content, ""));
        let value = value.trim_start_matches(is_between);
        let value = value.strip_prefix('"').map_or(value, |rest| rest.strip_suffix('"').unwrap_or(rest));
        Some(Entry { line, name, value })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_parted_as_coturn_does_it() {
        let text = "# comment\n\n  realm = example.org \nno-cli\nmin-port 5\nuser=alice:a=b\n\
                    mysql-userdb=\"host=h dbname=d\"\nfingerprint=Off\nmax-port=\r\n";
        let read: Vec<_> = entries(text).map(|entry| (entry.line, entry.name, entry.value)).collect();
        let expected = [
            (3, "realm", "example.org"),
            (4, "no-cli", ""),
            (5, "min-port", "5"),
            (6, "user", "alice:a=b"),
            (7, "mysql-userdb", "host=h dbname=d"),
            (8, "fingerprint", "Off"),
            (9, "max-port", ""),
        ];
        assert_eq!(read, expected);
        let off: Vec<_> = entries(text).filter(Entry::is_off).map(|entry| entry.name).collect();
        assert_eq!(off, ["fingerprint"]);
    }
}
