//! `cargo xtask bench`: the cost of tracing on each kernel.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    kernels,
    table::{Row, aligned},
    vm::{self, Lab, Options},
};

#[derive(Args)]
pub struct Bench {
    /// Kernel series to measure on; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", default_values = ["6.1", "7.2"])]
    kernels: Vec<String>,

    #[command(flatten)]
    options: Options,
}

impl Bench {
    pub fn run(&self) -> Result<ExitCode> {
        let series = vm::parse_series(&self.kernels)?;
        let programs = vm::guest_programs()?;
        let kernels = kernels::fetch(&series)?;
        let lab = Lab::new(&self.options, &kernels, programs)?;
        let mut rows = Vec::<Row>::new();
        for (column, kernel) in kernels.iter().enumerate() {
            let result =
                lab.run(kernel, "exec rsttrace-guest bench", &mut |line| match take(line) {
                    Some((name, number)) => cell(&mut rows, column, name, number),
                    None => eprintln!("{line}"),
                })?;
            if result.exit_code != 0 {
                bail!("nothing was measured on {}", kernel.wanted);
            }
        }
        let columns = kernels.iter().map(|kernel| kernel.wanted.to_string());
        println!("{}", aligned("", columns, &rows));
        Ok(ExitCode::SUCCESS)
    }
}

/// `BENCH name number`
fn take(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("BENCH ")?.split_once(' ')
}

fn cell(rows: &mut Vec<Row>, column: usize, name: &str, number: &str) {
    let at = rows.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        rows.push((name.to_owned(), Vec::new()));
        rows.len() - 1
    });
    if let Some((_, cells)) = rows.get_mut(at) {
        cells.resize(column, "-".to_owned());
        cells.push(number.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_is_a_column_and_each_measure_a_row() {
        let mut rows = Vec::new();
        for (column, line) in
            [(0, "BENCH a 1"), (0, "BENCH b 20"), (1, "BENCH b 3"), (2, "BENCH a 4")]
        {
            let (name, number) = take(line).expect("a measure");
            cell(&mut rows, column, name, number);
        }
        let table = aligned("", ["x", "y", "z"].map(str::to_owned).into_iter(), &rows);
        assert_eq!(table, "   x   y  z\na  1   -  4\nb  20  3");
        assert_eq!(take("PLAN 3"), None);
    }
}
