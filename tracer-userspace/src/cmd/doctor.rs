//! `rsttrace doctor`: what this kernel can trace, and how to trace more.

use std::path::Path;

use rsttrace_kernel::{attach::loaded_program_names, data_plane, examine::examine};
use rsttrace_schema::json;

use super::{Exit, Failure, stdout};
use crate::{
    cli::{DoctorArgs, PageFormat, page_width},
    doctor::Diagnosis,
    render::doctor,
};

/// Attaches if permitted, prints the result, and returns the exit code of `live`.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    // Before attaching, so that our own programs are not taken for those of a data plane.
    let planes = data_plane::look(Path::new("/"), &loaded_program_names());
    let diagnosis = Diagnosis::new(examine(args.no_kprobes), planes);
    let text = match args.page.output {
        PageFormat::Text => doctor::text(&diagnosis, args.page.color.on_stdout(), page_width()),
        PageFormat::Json => doctor::json(&diagnosis).to_string() + "\n",
        PageFormat::JsonPretty => json::pretty(&doctor::json(&diagnosis).to_string()) + "\n",
    };
    stdout::write(&text)?;
    Ok(diagnosis.exit())
}
