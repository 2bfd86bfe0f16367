//! A plain table: each column is as wide as its widest cell, with two spaces between columns and no trailing spaces.

use crate::printable::printable;

/// The layout of a table.
pub(super) struct Layout<'a> {
    /// The maximum width of a line in characters; its last cell is cut. `None` means no limit.
    pub(super) width: Option<usize>,
    /// Returns the painted form of a cell, by its column. Cells are measured before they are painted.
    pub(super) paint: &'a dyn Fn(usize, &str) -> Option<String>,
}

/// Lays out rows below their headings.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_owned).to_vec();
    let rows: Vec<_> = rows.iter().map(|row| row.to_vec()).collect();
    let layout = Layout {
        width: None,
        paint: &|_, _| None,
    };
    layout.table(&headings, &rows)
}

impl Layout<'_> {
    /// Lays out rows below their headings; each cell is made printable.
    pub(super) fn table(&self, headings: &[String], rows: &[Vec<String>]) -> String {
        let cells = |row: &Vec<String>| row.iter().map(printable).collect::<Vec<_>>();
        let rows: Vec<_> = rows.iter().map(cells).collect();
        let mut widths = vec![0; headings.len()];
        for row in std::iter::once(headings).chain(rows.iter().map(Vec::as_slice)) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut table = format!("{}\n", self.line(headings, &widths, |_, _| None));
        for row in &rows {
            table += &self.line(row, &widths, self.paint);
            table += "\n";
        }
        table
    }

    fn line(
        &self,
        row: &[String],
        widths: &[usize],
        paint: impl Fn(usize, &str) -> Option<String>,
    ) -> String {
        let last = row.iter().rposition(|cell| !cell.is_empty()).unwrap_or(0);
        let mut line = String::new();
        let mut column = 0;
        for (i, (cell, width)) in row.iter().zip(widths).enumerate().take(last + 1) {
            let cell = match self.width {
                Some(all) if i == last => cut(cell, all.saturating_sub(column)),
                _ => cell.clone(),
            };
            let pad = match i == last {
                true => 0,
                false => width - cell.chars().count() + 2,
            };
            line += &paint(i, &cell).unwrap_or(cell);
            line.extend(std::iter::repeat_n(' ', pad));
            column += width + 2;
        }
        line
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            ["a".to_owned(), "longer".to_owned()],
            ["äöü".to_owned(), String::new()],
        ];
        assert_eq!(table(["X", "Y"], &rows), "X    Y\na    longer\näöü\n");
    }

    #[test]
    fn control_characters_in_a_cell_are_escaped() {
        let rows = [["a\nb  forged\u{1b}[2J".to_owned(), "x".to_owned()]];
        let table = table(["X", "Y"], &rows);
        assert_eq!(table.lines().last(), Some("a\\nb  forged\\u{1b}[2J  x"));
        assert_eq!(table.lines().count(), 2);
    }

    #[test]
    fn a_long_line_is_cut_and_paint_does_not_count_as_width() {
        let layout = Layout {
            width: Some(10),
            paint: &|column, cell| (column == 0).then(|| format!("<{cell}>")),
        };
        let rows = [["a", "0123456"], ["bcd", "01234"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let headings = ["X", "Y"].map(str::to_owned);
        let table = layout.table(&headings, &rows);
        assert_eq!(table, "X    Y\n<a>    0123…\n<bcd>  01234\n");
    }
}
