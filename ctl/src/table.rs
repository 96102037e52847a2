//! A table for people, and numbers as they read them. Called by the verbs.

/// Rows under their heads, columns two blanks apart, no blanks at the ends of lines.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<_> = heads.iter().map(ToString::to_string).collect();
    let rows: Vec<_> = std::iter::once(&heads).chain(rows).collect();
    let widths: Vec<_> = (0..heads.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:0$}", width.unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Bytes, as `1.4 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        let tenths = (u128::from(bytes) * 10) >> shift;
        if tenths >= 10 {
            return match tenths % 10 {
                0 => format!("{} {unit}", tenths / 10),
                rest => format!("{}.{rest} {unit}", tenths / 10),
            };
        }
    }
    format!("{bytes} B")
}

/// How long ago that was, in its largest unit.
pub(crate) fn age(seconds: u64) -> String {
    let units = [("d", 86_400), ("h", 3600), ("m", 60)];
    let found = units.iter().find(|(_, length)| seconds >= *length);
    found.map_or_else(|| format!("{seconds}s"), |(unit, length)| format!("{}{unit}", seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_where_their_text_does() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong\n");
    }

    #[test]
    fn sizes_and_ages_are_short() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ];
        sizes.iter().for_each(|(bytes, text)| assert_eq!(size(*bytes), *text));
        let ages = [(0, "0s"), (59, "59s"), (60, "1m"), (7300, "2h"), (900_000, "10d")];
        ages.iter().for_each(|(seconds, text)| assert_eq!(age(*seconds), *text));
    }
}
