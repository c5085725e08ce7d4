//! Checks of query plans: PostgreSQL's extension `auto_explain` logs the plan of every statement, those inside functions
//! included.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use chassis::postgres::Pool;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

/// Repetitions of a call. From the sixth on, PostgreSQL may use one generic plan for all parameters.
const REPETITIONS: u32 = 7;

/// Returns the options to connect to the database with every plan logged. The server must be a throw-away one.
pub fn with_logged_plans(database: &PgConnectOptions) -> PgConnectOptions {
    database.clone().options([
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_nested_statements", "on"),
        ("auto_explain.log_format", "json"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_buffers", "on"),
        ("auto_explain.log_timing", "off"),
    ])
}

/// Reads the plans of the statements that a store sends to an [`with_logged_plans`] database.
pub struct Plans {
    pool: Pool,
    log: PathBuf,
    /// Bytes of the log read so far.
    read: usize,
    /// Texts of the statements seen so far.
    statements: BTreeSet<String>,
}

impl Plans {
    /// Starts to read the plans of a pool with one connection, to a database of a throw-away server.
    ///
    /// # Panics
    /// If the server has no log.
    pub async fn of(database: &PgConnectOptions, pool: &Pool) -> Self {
        let log = database.get_socket().expect("a throw-away server").join("log");
        let mut plans = Self { pool: pool.clone(), log, read: 0, statements: BTreeSet::new() };
        plans.read_new().await;
        plans
    }

    /// Repeats a call and checks its plans: they use only these indexes (and at least one of them, if any is named), scan no table
    /// sequentially, and no step reads more than `max_reads` rows or blocks.
    ///
    /// # Panics
    /// If a plan differs; the message has the plan.
    pub async fn expect(&mut self, indexes: &[&str], max_reads: u64, call: impl AsyncFn()) {
        for _ in 0..REPETITIONS {
            call().await;
        }
        let plans = self.read_new().await;
        let mut used = BTreeSet::new();
        for plan in &plans {
            let read = rows_read(&plan["Plan"], &mut used).max(blocks(&plan["Plan"]));
            assert!(read <= max_reads, "{read} rows or blocks are read, not {max_reads}: {plan:#}");
            assert!(!plan.to_string().contains("\"Seq Scan\""), "{plan:#}");
        }
        let known = used.iter().all(|index| indexes.contains(&index.as_str()));
        assert!(known && used.is_empty() == indexes.is_empty(), "{used:?}, not {indexes:?}: {}", json!(plans));
    }

    /// Checks that every statement logged since the last call, on any database of the server, has had its plan checked.
    ///
    /// # Panics
    /// If a statement is new; the message has its text.
    pub async fn expect_no_other_statement(&mut self) {
        let known = self.statements.clone();
        assert!(!self.read_new().await.is_empty(), "PostgreSQL logs plans");
        let others: Vec<_> = self.statements.difference(&known).collect();
        assert!(others.is_empty(), "statements without a checked plan: {others:#?}");
    }

    /// Reads the plans logged since the last call. In the log each plan is JSON, indented by a tab, after a line of its own.
    async fn read_new(&mut self) -> Vec<Value> {
        // A statement whose rows were not all read ends, and is logged, only at the next statement.
        sqlx::query("select 1").execute(&self.pool).await.expect("a database");
        let log = fs::read_to_string(&self.log).expect("the server's log");
        let entries = log[self.read..].split("  plan:\n").skip(1);
        let json = |entry: &str| entry.lines().take_while(|line| line.starts_with('\t')).collect::<String>();
        let plans: Vec<Value> = entries.map(|entry| serde_json::from_str(&json(entry)).expect("JSON")).collect();
        self.read = log.len();
        self.statements.extend(plans.iter().filter_map(|plan| Some(plan["Query Text"].as_str()?.to_owned())));
        plans
    }
}

/// Returns the most rows that this step or one below it read, and adds the indexes to `used`.
fn rows_read(step: &Value, used: &mut BTreeSet<String>) -> u64 {
    used.extend(step["Index Name"].as_str().map(str::to_owned));
    let number = |name: &str| step[name].as_f64().unwrap_or_default().ceil() as u64; // an average over the loops
    let rows = number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck");
    let below = step["Plans"].as_array().into_iter().flatten().map(|step| rows_read(step, used)).max();
    (rows * number("Actual Loops")).max(below.unwrap_or_default())
}

/// Returns the blocks of tables and indexes that the whole plan read. A full scan of an index, which happens when the condition
/// lacks its first column, shows only here.
fn blocks(plan: &Value) -> u64 {
    ["Shared Hit Blocks", "Shared Read Blocks"].iter().filter_map(|name| plan[name].as_u64()).sum()
}
