//! Cuts bytes into reads, as the input itself says.

/// The first byte of `data` chooses how the rest is cut into reads: 0 not at all, 1 to 8 into
/// reads of that size, anything else into reads whose sizes are as random as they are repeatable.
pub fn split(data: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return (vec![data], data) };
    let mut reads = Vec::new();
    let mut rest = stream;
    let mut state = u64::from(*choice) + 1;
    while !rest.is_empty() {
        let size = match choice {
            0 => rest.len(),
            1..=8 => usize::from(*choice),
            _ => {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                1 + (state >> 33) as usize % (1 + usize::from(*choice))
            }
        };
        let (read, after) = rest.split_at(size.min(rest.len()));
        reads.push(read);
        rest = after;
    }
    (reads, stream)
}
