//! What PostgreSQL did for each statement, as its extension `auto_explain` writes it down: also of a statement inside a
//! function, and of one that nobody here thought of.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;

use chassis::postgres::Pool;

/// So often a call is made: from the sixth time on PostgreSQL may have one plan for whatever is asked.
const TIMES: u32 = 7;

/// This database, with the plan of every statement written to the log of its server, which is a throw-away one.
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
    /// So much of the log.
    read: usize,
    /// Of which a plan was as expected, or was not asked for.
    statements: BTreeSet<String>,
}

impl Plans {
    /// Of the statements on this pool, which has one connection to this database of a throw-away server.
    ///
    /// # Panics
    /// If the server has no log.
    pub async fn of(database: &PgConnectOptions, pool: &Pool) -> Self {
        let log = database.get_socket().expect("a throw-away server").join("log");
        let mut plans = Self { pool: pool.clone(), log, read: 0, statements: BTreeSet::new() };
        plans.new_ones().await;
        plans
    }

    /// Makes a call again and again, and checks that its statements went through these indexes (some, if there are any) and
    /// no others, read no table from end to end, and none of them had more than `most` rows or blocks in its hands.
    ///
    /// # Panics
    /// If not, with the plan.
    pub async fn expect(&mut self, indexes: &[&str], most: u64, call: impl AsyncFn()) {
        for _ in 0..TIMES {
            call().await;
        }
        let plans = self.new_ones().await;
        let mut used = BTreeSet::new();
        for plan in &plans {
            let read = look(&plan["Plan"], &mut used).max(blocks(&plan["Plan"]));
            assert!(read <= most, "{read} rows or blocks are read, not {most}: {plan:#}");
            assert!(!plan.to_string().contains("\"Seq Scan\""), "{plan:#}");
        }
        let known = used.iter().all(|index| indexes.contains(&index.as_str()));
        assert!(known && used.is_empty() == indexes.is_empty(), "{used:?}, not {indexes:?}: {}", json!(plans));
    }

    /// Checks that of the statements since the last look, on any database of the server, each was there before.
    ///
    /// # Panics
    /// If not, with the statement.
    pub async fn expect_no_other_statement(&mut self) {
        let known = self.statements.clone();
        assert!(!self.new_ones().await.is_empty(), "plans are written down");
        let others: Vec<_> = self.statements.difference(&known).collect();
        assert!(others.is_empty(), "not looked at: {others:#?}");
    }

    /// In the log each is JSON, indented by a tab, behind a line of its own.
    async fn new_ones(&mut self) -> Vec<Value> {
        // A statement whose rows are not all read has not ended before the next one.
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

/// The rows that the busiest step at or below this one took into its hands; its indexes are added to `used`.
fn look(step: &Value, used: &mut BTreeSet<String>) -> u64 {
    used.extend(step["Index Name"].as_str().map(str::to_owned));
    let number = |name: &str| step[name].as_f64().unwrap_or_default().ceil() as u64; // the average of its loops
    let rows = number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck");
    let below = step["Plans"].as_array().into_iter().flatten().map(|step| look(step, used)).max();
    (rows * number("Actual Loops")).max(below.unwrap_or_default())
}

/// The blocks of tables and indexes that the whole plan looked at. An index that is read from end to end, for want of its
/// first column, shows nowhere else.
fn blocks(plan: &Value) -> u64 {
    ["Shared Hit Blocks", "Shared Read Blocks"].iter().filter_map(|name| plan[name].as_u64()).sum()
}
