//! The likely meaning of a word that nothing has as its name.

/// Longer words are nobody's misspelling.
const WORD_BYTES_MAX: usize = 40;

/// Returns how many letters must be inserted, removed, replaced or exchanged with their neighbour to
/// make `b` of `a`.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > WORD_BYTES_MAX || b.len() > WORD_BYTES_MAX || a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut least = (row[j] + 1).min(last[j + 1] + 1).min(last[j] + usize::from(x != y));
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Returns the candidate that `word` most likely stands for.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let allowed = match word.len() {
        0..=2 => 0,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    let ranked =
        candidates.into_iter().map(|known| (distance(&word, &known.to_ascii_lowercase()), known));
    ranked
        .filter(|&(apart, _)| apart <= allowed)
        .min_by_key(|&(apart, _)| apart)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_understood() {
        let known = ["priority", "interface", "virtual_router_id"];
        assert_eq!(nearest("prioritty", known), Some("priority"));
        assert_eq!(nearest("interafce", known), Some("interface"));
        assert_eq!(nearest("virtual-router-id", known), Some("virtual_router_id"));
        assert_eq!(nearest("weight", known), None);
    }
}
