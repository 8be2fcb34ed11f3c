//! `DNS_CHECK`: what is asked of a name server, and what it makes of the answer (RFC 1035 §4.1).

/// Types of records that can be asked for, by name and number.
const TYPES: [(&str, u16); 7] =
    [("A", 1), ("NS", 2), ("CNAME", 5), ("SOA", 6), ("MX", 15), ("TXT", 16), ("AAAA", 28)];
const CLASS_IN: u16 = 1;
/// One question, recursion desired.
const FLAGS_AND_COUNTS: [u8; 10] = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 255;

/// Returns a query.
///
/// # Errors
/// The type is not known, or the name is none.
pub(super) fn query(id: u16, record: &str, name: &str) -> Result<Vec<u8>, String> {
    let (_, number) = TYPES
        .into_iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(record))
        .ok_or_else(|| format!("there is no type of record {record}"))?;
    let mut query = id.to_be_bytes().to_vec();
    query.extend(FLAGS_AND_COUNTS);
    let begin = query.len();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|&it| usize::from(it) <= LABEL_MAX);
        query.push(length.ok_or_else(|| format!("`{name}` has a part of more than 63 bytes"))?);
        query.extend(label.as_bytes());
    }
    query.push(0);
    if query.len() - begin > NAME_MAX {
        return Err(format!("`{name}` is longer than 255 bytes"));
    }
    query.extend(number.to_be_bytes());
    query.extend(CLASS_IN.to_be_bytes());
    Ok(query)
}

/// Returns what is wrong with an answer; `None` if it is not the answer to this query. What it says is
/// not looked at, as with keepalived: an empty answer is good.
pub(super) fn judge(query: &[u8], answer: &[u8]) -> Option<Result<(), String>> {
    let (head, asked) = (answer.get(..12)?, query.get(..2)?);
    if head.get(..2)? != asked || head[2] & 0x80 == 0 {
        return None;
    }
    match head[3] & 15 {
        0 => Some(Ok(())),
        code => Some(Err(format!("the name server answers with code {code}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_that_of_keepalived() {
        let query = query(0x1234, "A", "www.example.com").unwrap();
        let mut expected = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        expected.extend(b"\x03www\x07example\x03com\x00\x00\x01\x00\x01");
        assert_eq!((query.len(), query), (33, expected));
        let root = super::query(0, "soa", ".").unwrap();
        assert_eq!(root[12..], [0, 0, 6, 0, 1]);
        assert!(super::query(0, "PTR", ".").is_err());
        assert!(super::query(0, "A", &"x".repeat(64)).is_err());
        assert!(super::query(0, "A", &"xyz.".repeat(64)).is_err());
    }

    #[test]
    fn only_the_code_of_the_answer_matters() {
        let answer = |id: u8, flags: u8, code: u8| [0, id, flags, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let query = query(7, "A", "a").unwrap();
        assert_eq!(judge(&query, &answer(7, 0x81, 0x80)), Some(Ok(())));
        let refused = Err("the name server answers with code 3".to_owned());
        assert_eq!(judge(&query, &answer(7, 0x81, 0x83)), Some(refused));
        assert_eq!(judge(&query, &answer(8, 0x81, 0x80)), None);
        assert_eq!(judge(&query, &answer(7, 0x01, 0x00)), None);
        assert_eq!(judge(&query, &[0, 7, 0x81]), None);
    }
}
