//! `rsttrace doctor`: what this kernel lets us see, and what would help.

use std::path::Path;

use rsttrace_kernel::{attach::loaded_program_names, data_plane, examine::examine};
use rsttrace_schema::json;

use super::{Exit, Failure, stdout};
use crate::{
    cli::{DoctorArgs, PageFormat, page_width},
    doctor::Diagnosis,
    render::doctor,
};

/// Attaches where that is allowed, tells what became of it, and ends as `live` would.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    // Before attaching: our own programs are nobody's data plane.
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
