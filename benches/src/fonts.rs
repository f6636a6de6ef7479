//! The typeface of plots: plotters draws and measures text with one that it is given.

use std::sync::OnceLock;

use harness::{Failure, Outcome};
use plotters::style::{FontStyle, register_font};

const FILE: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// Makes `sans-serif` known to plotters.
///
/// # Errors
/// When the file is missing.
pub fn register() -> Outcome {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = std::fs::read(FILE).map_err(|e| Failure(format!("{FILE}: {e}: run `make setup`")))?;
    register_font("sans-serif", FontStyle::Normal, BYTES.get_or_init(|| bytes))
        .map_err(|_| Failure(format!("{FILE} is no typeface that plotters understands")))
}
