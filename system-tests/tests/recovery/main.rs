//! What a crash interrupts is finished: a server of PostgreSQL is lost, or the replicas of a release are killed.

mod clients;
mod failover;
mod release;
mod restore;
