//! Text in columns.

/// The name of a row and its cells.
pub type Row = (String, Vec<String>);

/// Lines of cells, each column as wide as its widest cell.
pub fn aligned(corner: &str, columns: impl Iterator<Item = String>, rows: &[Row]) -> String {
    let head: Row = (corner.to_owned(), columns.collect());
    let lines = || std::iter::once(&head).chain(rows);
    let first = lines().map(|(name, _)| name.len()).max().unwrap_or(0);
    let width = |column: usize| {
        lines().filter_map(|(_, cells)| cells.get(column)).map(String::len).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.1.len()).map(width).collect();
    let line = |(name, cells): &Row| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:width$}"));
        format!("{name:first$}{}", cells.collect::<String>()).trim_end().to_owned()
    };
    lines().map(line).collect::<Vec<_>>().join("\n")
}
