//! Takes secrets out of text before it is handed to somebody else.
//!
//! 1. What stands behind the name of a secret, or has a form that only secrets have, is not in the result.
//! 2. Too much is removed rather than too little: who wants to hide nothing can look at the machine itself.

/// What stands where a secret was.
pub(super) const REMOVED: &str = "[removed]";

/// How names of secrets end; a plural is one, too.
const NAMES: [&str; 11] = [
    "secret",
    "token",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "credential",
    "key",
    "psk",
    "authorization",
    "cookie",
];
/// Base64 of 30 bytes and more is taken for a key, if it does not look like a word.
const KEY_MIN_CHARS: usize = 40;
/// No JSON Web Token is shorter.
const TOKEN_MIN_CHARS: usize = 20;

/// The same text without secrets.
pub(super) fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        in_pem &= line.trim().chars().all(is_base64);
        if in_pem {
            continue;
        }
        let line = by_pem(line, &mut in_pem);
        clean.push_str(&by_name(&by_form(&by_user(&line))));
    }
    clean
}

/// Removes what lies in the armour of PEM; `is_open` says whether the next line does, too.
fn by_pem(line: &str, is_open: &mut bool) -> String {
    const END: &str = "-----END";
    let mut clean = String::new();
    let mut rest = line;
    while let Some((before, inside)) = rest.split_once("-----BEGIN") {
        clean.push_str(before);
        clean.push_str(REMOVED);
        let Some((_, after)) = inside.split_once(END) else {
            *is_open = true;
            clean.push('\n');
            return clean;
        };
        rest = after;
    }
    clean.push_str(rest);
    clean
}

/// Removes users and passwords from addresses: `http://user:password@host`.
fn by_user(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(after.len());
        rest = after;
        if let Some(at) = after[..end].rfind('@') {
            clean.push_str(REMOVED);
            rest = &after[at..];
        }
    }
    clean.push_str(rest);
    clean
}

/// Removes what has the form of a secret: keys of `NVMe`, JSON Web Tokens, long base64.
fn by_form(line: &str) -> String {
    let line = replace(
        line,
        |c| is_base64(c) || ":._-".contains(c),
        |run| {
            let token = run.find("eyJ").filter(|at| {
                let token = &run[*at..];
                token.len() >= TOKEN_MIN_CHARS && token.contains('.')
            });
            let at = run.find("DHHC-1:").or(token)?;
            Some(format!("{}{REMOVED}", &run[..at]))
        },
    );
    replace(&line, is_base64, |run| is_key(run).then(|| REMOVED.to_owned()))
}

const fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')
}

/// Whether it is long, and padded or as mixed as random bytes are: no path, no hash in hexadecimal, no word.
fn is_key(run: &str) -> bool {
    let has = |is: fn(&char) -> bool| run.chars().any(|c| is(&c));
    let mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit);
    run.len() >= KEY_MIN_CHARS && (mixed || run.ends_with('='))
}

/// Passes on `line` with those runs of characters replaced for which `replacement` has one.
fn replace(line: &str, is_in: impl Fn(char) -> bool, replacement: impl Fn(&str) -> Option<String>) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let (other, after) = rest.split_at(rest.find(&is_in).unwrap_or(rest.len()));
        let (run, after) = after.split_at(after.find(|c| !is_in(c)).unwrap_or(after.len()));
        clean.push_str(other);
        match replacement(run) {
            Some(replacement) => clean.push_str(&replacement),
            None => clean.push_str(run),
        }
        rest = after;
    }
    clean
}

/// Removes what stands behind the name of a secret: `secret=...`, `"token": "..."`, `--key ...`, `Bearer ...`.
fn by_name(line: &str) -> String {
    let is_in = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let (other, after) = rest.split_at(rest.find(is_in).unwrap_or(rest.len()));
        let (name, after) = after.split_at(after.find(|c| !is_in(c)).unwrap_or(after.len()));
        clean.push_str(other);
        clean.push_str(name);
        rest = after;
        if let Some(separator) = separator_len(name, after) {
            let (separator, value) = after.split_at(separator);
            let len = value_len(value, takes_the_line(name));
            clean.push_str(separator);
            if len > 0 {
                clean.push_str(&removed(value, separator.starts_with('"')));
            }
            rest = &value[len..];
        }
    }
    clean
}

/// How much stands between the name of a secret and the secret; none if it is no such name, or nothing follows.
fn separator_len(name: &str, after: &str) -> Option<usize> {
    let from = |rest: &str| after.len() - rest.trim_start_matches([' ', '\t']).len();
    if name.eq_ignore_ascii_case("bearer") || is_secret(name) && name.starts_with("--") {
        return after.strip_prefix(' ').map(from).or_else(|| after.strip_prefix('=').map(from));
    }
    if !is_secret(name) {
        return None;
    }
    let rest = after.trim_start_matches(['"', '\'', '\\']).trim_start_matches([' ', '\t']);
    let rest = rest.strip_prefix([':', '='])?;
    Some(from(rest.strip_prefix('>').unwrap_or(rest)))
}

fn is_secret(name: &str) -> bool {
    let name = name.trim_matches('-').to_ascii_lowercase();
    let name = name.strip_suffix('s').unwrap_or(&name);
    NAMES.iter().any(|end| name.ends_with(end))
}

/// Headers of HTTP have several words.
fn takes_the_line(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with("authorization") || name.ends_with("cookie")
}

/// How long a value is: what its quotes hold, a word, or, if it has several parts, all until the line ends.
fn value_len(value: &str, takes_the_line: bool) -> usize {
    let line = value.find(['\n', '\r']).unwrap_or(value.len());
    if value.starts_with(REMOVED) {
        return REMOVED.len();
    }
    if let Some(inner) = value.strip_prefix("\\\"") {
        return inner.find('"').map_or(line, |end| end + 3).min(line);
    }
    if value.starts_with(['{', '[', '(']) {
        return line;
    }
    if takes_the_line && !value.starts_with(['"', '\'']) {
        return value.find('"').unwrap_or(line).min(line);
    }
    let len = word_len(&value[..line]);
    let is_scheme = ["bearer", "basic"].iter().any(|scheme| value[..len].eq_ignore_ascii_case(scheme));
    let gap = value[len..line].len() - value[len..line].trim_start_matches(' ').len();
    if is_scheme { len + gap + word_len(&value[len + gap..line]) } else { len }
}

/// The length of a word; what it has in quotes, such as `Some("two words")`, belongs to it.
fn word_len(line: &str) -> usize {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in line.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open && line.starts_with(open) => return at + 1,
            Some(open) if c == open => quote = None,
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if c.is_whitespace() || ",;)}]&".contains(c) => return at,
            Some(_) | None => {}
        }
    }
    line.len()
}

/// What stands there instead of `value`: in its quotes, so that JSON stays JSON.
fn removed(value: &str, is_json: bool) -> String {
    let quote = match value.as_bytes() {
        [b'\\', b'"', ..] => "\\\"",
        [b'\'', ..] => "'",
        [b'"', ..] => "\"",
        _ if is_json => "\"",
        _ => "",
    };
    format!("{quote}{REMOVED}{quote}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_removed_by_their_names() {
        for (text, clean) in [
            ("secret=abc next=1", "secret=[removed] next=1"),
            ("--secret ./file --size 1", "--secret [removed] --size 1"),
            ("--key=abc", "--key=[removed]"),
            ("peer_secret: \"a b\\\" c\", x", "peer_secret: \"[removed]\", x"),
            (r#"{"token": "abc", "n": 1}"#, r#"{"token": "[removed]", "n": 1}"#),
            (r#"{"apiKey":"abc","n":1}"#, r#"{"apiKey":"[removed]","n":1}"#),
            (r#"{"keys": 5}"#, r#"{"keys": "[removed]"}"#),
            (r#"{"m": "the \"secret\": \"abc\" is"}"#, r#"{"m": "the \"secret\": \"[removed]\" is"}"#),
            ("Config { secret: Some(\"abc\"), port: 1 }", "Config { secret: [removed]), port: 1 }"),
            ("password = 'a b'; x", "password = '[removed]'; x"),
            ("token: Bearer abc; x", "token: [removed]; x"),
            ("Authorization: Basic YTpi next", "Authorization: [removed]"),
            ("with bearer abc.def\n", "with bearer [removed]\n"),
            ("secrets: [\"a\", \"b\"]\nnext", "secrets: [removed]\nnext"),
            ("ORLOP_TOKEN=abc\n", "ORLOP_TOKEN=[removed]\n"),
        ] {
            assert_eq!(redact(text), clean);
            assert_eq!(redact(clean), clean, "again");
        }
    }

    #[test]
    fn secrets_are_removed_by_their_form() {
        let pem = "a -----BEGIN PRIVATE KEY-----\nMIIB\nshort==\n-----END PRIVATE KEY-----\nnext\n";
        for (text, clean) in [
            ("key DHHC-1:01:abc+/=: of", "key [removed] of"),
            ("(eyJhbGciOi.eyJpc3MiOi.c2ln)", "([removed])"),
            ("http://u:p@host/x ftp://v@h", "http://[removed]@host/x ftp://[removed]@h"),
            ("5fF0c2VjcmV0LWtleS1vZi10aGUtY2x1c3Rlci1vay4=", "[removed]"),
            (pem, "a [removed]\n-----END PRIVATE KEY-----\nnext\n"),
            ("-----BEGIN A-----\\nMIIB\\n-----END A-----, x", "[removed] A-----, x"),
        ] {
            assert_eq!(redact(text), clean);
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "{\n  \"serial\": \"S5GXNX0R123456\",\n  \"name\": \"nvme-Samsung_SSD_980_PRO_1TB_S5GXNX0R123456\"\n}\n",
            "0c7d8d8e-4a4e-4d0a-9a3f-b1f3c2f7a001 /dev/disk/by-id/wwn-0x5000c500a1b2c3d4",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "2026-11-26T16:00:00Z  INFO orlop::node: node runs name=\"node-1\" address=127.0.0.1:4420",
            "nqn.2026-11.io.orlop:volume:data, secretName of the keyboard, http://127.0.0.1:7070/metrics",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in r#"(secret|token|bearer|-----BEGIN|-----END|://|eyJ|[\\":= '@\n]|.){0,20}"#) {
            redact(&text);
        }

        #[test]
        fn a_planted_secret_is_gone(
            before in "[a-z ,;(]{0,20}",
            (secret, form) in prop_oneof![
                ("[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", 0..9_usize),
                ("[a-z0-9]{12}", 1..8_usize),
            ],
            after in "[a-z ,;)]{0,20}",
        ) {
            let planted = match form {
                0 => secret.clone(),
                1 => format!("secret={secret}"),
                2 => format!("--secret {secret}"),
                3 => format!("\"secret\": \"{secret}\""),
                4 => format!("DHHC-1:01:{secret}:"),
                5 => format!("Authorization: Bearer {secret}"),
                6 => format!("password: Some('{secret}')"),
                7 => format!("http://user:{secret}@host"),
                _ => format!("-----BEGIN KEY-----\n{secret}\n-----END KEY-----"),
            };
            let clean = redact(&format!("{before} {planted} {after}"));
            // Neither all of it nor a piece.
            for piece in secret.as_bytes().chunks(8).filter(|piece| piece.len() == 8) {
                prop_assert!(!clean.contains(std::str::from_utf8(piece).unwrap()), "{}", clean);
            }
        }
    }
}
