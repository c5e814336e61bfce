//! A mistake to be found, so that a run which finds nothing means something: it takes four steps, each of which only shows as coverage.

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut word = b"bug!".iter().zip(data);
    if word.next().is_some_and(|(a, b)| a == b)
        && word.next().is_some_and(|(a, b)| a == b)
        && word.next().is_some_and(|(a, b)| a == b)
        && word.next().is_some_and(|(a, b)| a == b)
    {
        panic!("the planted mistake");
    }
}
