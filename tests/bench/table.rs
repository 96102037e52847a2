//! The report as Markdown, which people read on a terminal as well. Called by `main.rs`.

use crate::report::{Report, short};
use crate::statistics::Summary;

/// Facts, figures, phases.
pub(crate) fn of(report: &Report) -> String {
    let facts = &report.facts;
    let mut text = format!(
        "\nmicrovm at {} beside runc: medians (p95) of {} rounds\n{} × {}, {} MiB, Linux {}, load {}\n{}; {}; {}\n",
        facts.commit,
        facts.rounds,
        facts.cpus,
        facts.cpu,
        facts.memory_mib,
        facts.kernel,
        facts.load,
        facts.containerd,
        facts.runc,
        facts.qemu,
    );
    let head = ["figure", "", "unit", "runc", "microvm", "ratio", "goal", "met", "p95 ≤ 1.5 × median"];
    let rows = report.figures.iter().map(|row| {
        let cells = [
            row.name.to_owned(),
            row.what.to_owned(),
            row.unit.to_owned(),
            cell(row.runc.as_ref()),
            cell(row.microvm.as_ref()),
            row.ratio.map_or(String::new(), short),
            row.goal.clone(),
            verdict(row.met),
            verdict(row.steady),
        ];
        cells.to_vec()
    });
    text += &table(&head, rows);
    text += "\nWhat the shim did in that time, in ms:\n";
    let rows =
        report.phases.iter().map(|row| vec![row.operation.clone(), row.phase.clone(), cell(Some(&row.time))]);
    text + &table(&["operation", "phase", "ms"], rows)
}

fn cell(summary: Option<&Summary>) -> String {
    summary.map_or(String::new(), |summary| format!("{} ({})", short(summary.median), short(summary.p95)))
}

fn verdict(yes: Option<bool>) -> String {
    yes.map_or("", |yes| if yes { "yes" } else { "**no**" }).to_owned()
}

/// A table whose columns are as wide as their widest cell.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut all = vec![head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = line(&all[0]) + &line(&rule);
    all[1..].iter().for_each(|row| text += &line(row));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["×".to_owned(), "1.00".to_owned()]].into_iter();
        assert_eq!(table(&["a", "b"], rows), "| a   | b    |\n| --- | ---- |\n| ×   | 1.00 |\n");
    }
}
