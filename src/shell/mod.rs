//! `couplet query` without SQL: an interactive shell over the tables, or a script from stdin.
//!
//! The line editor is rustyline and everything else is implemented here. `datafusion-cli` is not used because it keeps
//! `.history` in the working folder, completes only file names, prints `DataFusion`'s raw errors instead of those of
//! [`crate::error`], and adds sixty crates of the AWS SDK. [`crate::query`] decides which statements are allowed, as
//! for SQL on the command line.

mod commands;
mod complete;
mod script;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use couplet_cluster as cluster;
use couplet_storage::files::{self, MAX_JSON};
use couplet_storage::trouble::Explained;
use couplet_storage::words::grouped;
use couplet_tables::tables::Table;
use couplet_tables::tables::snapshot::Snapshot;
use datafusion::prelude::SessionContext;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};

use crate::error::Error;
use crate::logging::LogFormat;
use crate::parameters::Parameters;
use crate::query::{self, Format, Script, Shown};
use crate::run;
use crate::terminal::{print, report_error};

use commands::Command;
use complete::Assistant;
use script::Piece;

/// The maximum number of rows of a result that the shell shows. A table is buffered until it is shown.
const MAX_ROWS: usize = 1000;

/// The maximum depth to which script files may include each other.
const MAX_DEPTH: usize = 8;

/// The maximum number of statements in the history.
const MAX_HISTORY: usize = 10_000;

const PROMPT: &str = "couplet> ";

/// A shell session that executes statements and commands in order.
pub struct Shell<'a> {
    context: &'a SessionContext,
    tables: &'a [Table],
    /// Parameter values, for the statements that use them.
    parameters: Vec<(String, String)>,
    /// The output format; none to choose it by the extension of the output file.
    format: Option<Format>,
    /// The output file of the next result.
    output: Option<PathBuf>,
    timing: bool,
    /// The maximum number of rows shown per result; none for no limit. Set only in an interactive shell.
    most_rows: Option<usize>,
}

/// The next step after a statement or command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    Leave,
}

impl<'a> Shell<'a> {
    /// Creates a shell over a session with these tables. The first result goes to `output`, if given.
    #[must_use]
    pub fn new(
        context: &'a SessionContext,
        tables: &'a [Table],
        parameters: Vec<(String, String)>,
        format: Option<Format>,
        output: Option<PathBuf>,
    ) -> Self {
        Self { context, tables, parameters, format, output, timing: false, most_rows: None }
    }

    /// Reads and executes statements from the terminal until the user leaves. Ctrl-C cancels the running statement or
    /// clears the line. Errors of statements are shown and do not end the shell.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub async fn run(mut self) -> Result<(), Error> {
        self.most_rows = Some(MAX_ROWS);
        let config = Config::builder().completion_type(CompletionType::List).auto_add_history(false);
        let config = config.history_ignore_dups(true).and_then(|config| config.max_history_size(MAX_HISTORY));
        let config = config.map_err(|e| unusable(&e))?.build();
        let mut editor: Editor<Assistant, FileHistory> = Editor::with_config(config).map_err(|e| unusable(&e))?;
        // If the path is a named pipe, rustyline would block on it.
        let history = history_file().filter(|path| path.is_file() || !path.exists());
        if let Some(path) = &history {
            // The file does not exist before the first statement.
            let _ = editor.load_history(path);
        }
        print(&format!(
            "couplet {} · {} · \\? for help, \\q to leave\n",
            env!("CARGO_PKG_VERSION"),
            complete::summary(self.context)
        ))?;
        loop {
            editor.set_helper(Some(Assistant::of(self.context).await));
            let text = match tokio::task::block_in_place(|| editor.readline(PROMPT)) {
                Ok(text) => text,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(e) => return Err(unusable(&e)),
            };
            let is_new = !text.trim().is_empty() && editor.add_history_entry(text.trim()).unwrap_or(false);
            if let Some(path) = history.as_ref().filter(|_| is_new) {
                // The shell works without a history.
                let _ = editor.append_history(path);
            }
            let done = tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => {
                    report_error(&Error::Usage("interrupted".into()), LogFormat::Text);
                    cluster::cancel(self.context).await;
                    continue;
                }
                done = self.script(&text, "SQL", 0) => done,
            };
            match done {
                Ok(Next::Continue) => {}
                Ok(Next::Leave) => return Ok(()),
                Err(error) => report_error(&error, LogFormat::Text),
            }
        }
    }

    /// Executes the statements and commands of a text up to the first failure. `origin` names the text in messages.
    ///
    /// # Errors
    /// The first failure.
    pub async fn execute(mut self, text: &str, origin: &str) -> Result<(), Error> {
        let pieces = script::split(text);
        let (mut statements, mut includes) = (Vec::new(), false);
        for piece in &pieces {
            match Command::parse(piece.text()) {
                None => statements.push(piece.text()),
                Some(command) => includes |= matches!(command, Ok(Command::Include(_))),
            }
        }
        // Included files may use the parameters, and their contents are not known yet.
        if !includes {
            Parameters::check_used(&statements.join("\n"), origin, &self.parameters)?;
        }
        self.script(text, origin, 0).await.map(drop)
    }

    /// Executes a text statement by statement. A text without commands is parsed completely before its first statement
    /// runs, as on the command line. With commands this is not possible, because earlier ones may decide what later
    /// ones mean.
    async fn script(&mut self, text: &str, origin: &str, depth: usize) -> Result<Next, Error> {
        let pieces = script::split(text);
        let is_shell = self.most_rows.is_some();
        if !pieces.iter().any(|piece| Command::parse(piece.text()).is_some()) {
            // In an interactive shell, empty input or a comment is not an error.
            let is_one = pieces.is_empty() && !is_shell || pieces.len() > 1 && self.output.is_some();
            if is_one {
                return self.sql(text, origin, origin).await;
            }
            query::check_syntax(self.context, text, origin)?;
        }
        let is_alone = pieces.len() == 1;
        for piece in pieces {
            let line = if is_alone || is_shell { String::new() } else { format!(", line {}", piece.line()) };
            if self.perform(&piece, origin, &format!("{origin}{line}"), depth).await? == Next::Leave {
                return Ok(Next::Leave);
            }
        }
        Ok(Next::Continue)
    }

    async fn perform(&mut self, piece: &Piece, origin: &str, here: &str, depth: usize) -> Result<Next, Error> {
        match Command::parse(piece.text()) {
            None => self.sql(piece.placed(), origin, here).await,
            Some(Err(problem)) => Err(Error::Usage(problem)),
            Some(Ok(Command::Leave)) => Ok(Next::Leave),
            Some(Ok(Command::Help)) => print(commands::HELP).map(|()| Next::Continue),
            Some(Ok(Command::Timing(on))) => {
                self.timing = on.unwrap_or(!self.timing);
                self.say(if self.timing { "timing is on\n" } else { "timing is off\n" }).map(|()| Next::Continue)
            }
            Some(Ok(Command::Output(path))) => self.set_output(path).map(|()| Next::Continue),
            Some(Ok(Command::Tables)) => print(&commands::tables(self.context).await?).map(|()| Next::Continue),
            Some(Ok(Command::Columns(name))) => {
                print(&commands::columns(self.context, &name).await?).map(|()| Next::Continue)
            }
            Some(Ok(Command::Functions(part))) => {
                print(&commands::functions(self.context, &part)?).map(|()| Next::Continue)
            }
            Some(Ok(Command::Include(path))) => {
                let shown = path.display().to_string();
                if depth == MAX_DEPTH {
                    return Err(Error::Usage(format!(
                        "{shown}: files include each other more than {MAX_DEPTH} levels deep"
                    )));
                }
                let text = files::read_string(&path, MAX_JSON);
                let text = text.map_err(|e| {
                    Error::Unusable(Explained::of(&e).in_words(|e| format!("cannot read {shown}: {e}")))
                })?;
                Box::pin(self.script(&text, &shown, depth + 1)).await
            }
        }
    }

    /// Prints a notice in an interactive shell only. Elsewhere, stdout contains nothing but results.
    fn say(&self, text: &str) -> Result<(), Error> {
        if self.most_rows.is_some() { print(text) } else { Ok(()) }
    }

    fn set_output(&mut self, path: Option<PathBuf>) -> Result<(), Error> {
        if let Some(path) = &path {
            query::format_of(self.format, Some(path))?;
            self.say(&format!("the next result goes to {}\n", path.display()))?;
        } else {
            self.say("results are shown here\n")?;
        }
        self.output = path;
        Ok(())
    }

    /// Executes a statement. Its positions are those in the whole text `origin`; `here` is the position of the
    /// statement.
    async fn sql(&mut self, sql: &str, origin: &str, here: &str) -> Result<Next, Error> {
        let began = Instant::now();
        let output = self.output.clone();
        let format = query::format_of(self.format, output.as_deref())?;
        let parameters = Parameters::of_statement(sql, here, &self.parameters)?;
        // Files may have been replaced since the previous statement.
        if let Some(snapshot) = Snapshot::of(self.context) {
            snapshot.renew();
        }
        let script = Script {
            context: self.context.clone(),
            tables: self.tables.to_vec(),
            sql: sql.to_owned(),
            origin: origin.to_owned(),
            parameters,
            format,
            output: output.clone(),
            most_rows: self.most_rows,
        };
        let Shown { rows, cut } = match query::execute(script).await {
            Ok(shown) => shown,
            Err(error) => {
                let kept = if output.is_some() { "no output was written" } else { "the output is not complete" };
                return Err(run::blame(self.context, self.tables, error, kept).await);
            }
        };
        match (rows, &output) {
            (Some(rows), Some(path)) => self.say(&format!("{}: {} rows\n", path.display(), grouped(rows)))?,
            (Some(rows), None) if cut => self.say(&format!(
                "the first {} rows; `\\o FILE` before the statement writes all to a file\n",
                grouped(rows)
            ))?,
            _ => {}
        }
        if rows.is_some() {
            self.output = None;
        }
        if self.timing {
            print(&format!("{:.3} s\n", began.elapsed().as_secs_f64()))?;
        }
        Ok(Next::Continue)
    }
}

/// Returns the path of the history file; none if the user has no home folder.
fn history_file() -> Option<PathBuf> {
    let folder = dirs::state_dir().or_else(dirs::data_local_dir)?.join("couplet");
    fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

fn unusable(error: &ReadlineError) -> Error {
    Error::Io { context: "the terminal cannot be used".into(), error: io::Error::other(error.to_string()) }
}

/// Returns the path in a command, with a leading `~` replaced by the user's home.
fn path_of(text: &str) -> PathBuf {
    match (Path::new(text).strip_prefix("~"), dirs::home_dir()) {
        (Ok(below), Some(home)) => home.join(below),
        _ => PathBuf::from(text),
    }
}
