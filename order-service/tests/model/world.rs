//! What there is, and what must hold of it.

use std::fmt;

use order_service::order::State;
use shared::orders::OrderStatus;
use shared::products::ReservationStatus;

use crate::Mistake;

/// What must hold, whatever happened; the design has it under the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// No unit is made or lost: each is free, taken for an order, or a rival's.
    I1,
    /// An order that is not cancelled has its stock.
    I2,
    /// Stock that is taken has a row that knows of it, so that somebody sees to it.
    I3,
    /// A key has at most one order, intents counted; an attempt that was refused has given it up.
    I4,
    /// What was answered with 201 can be read ever after.
    I5,
    /// What was answered with 4xx never becomes an order.
    I6,
}

/// Everything there is: one product, and `N` attempts to order one unit of it.
#[derive(Clone, Copy)]
pub(crate) struct World<const N: usize> {
    /// The units that there are. It never changes.
    pub(crate) stock: u8,
    /// The mistake that everybody makes. It never changes either.
    pub(crate) mistake: Option<Mistake>,
    /// Units that are free to sell.
    pub(crate) free: u8,
    /// Units that rivals bought.
    pub(crate) rivals: u8,
    pub(crate) attempts: [Attempt; N],
}

/// One attempt, under an order id of its own.
#[derive(Clone, Copy, Default)]
pub(crate) struct Attempt {
    pub(crate) task: Task,
    /// In order-service's store.
    pub(crate) row: Option<State>,
    /// In product-service's store.
    pub(crate) reservation: Option<ReservationStatus>,
    /// A take is on its way. Arriving does not end that, because it may be there twice; being lost does.
    pub(crate) take_sent: bool,
    /// The same, of a release.
    pub(crate) release_sent: bool,
    pub(crate) release: Release,
    /// Somebody was answered 201, with this order.
    pub(crate) told_201: bool,
    /// This attempt was answered 4xx.
    pub(crate) told_4xx: bool,
}

/// How far the task is that places the order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Task {
    #[default]
    NotBegun,
    /// It has written down the intent and asked for the stock.
    Asking,
    /// It was told that the stock is taken.
    Taken,
    /// It was told that the stock is not to be had.
    Refused,
    /// It could not settle, or does not know whether it did.
    Failing,
    /// It has answered, or died.
    Over,
}

/// How far the release is: the reconciler's, or that of a task that gave up, which goes by the same steps.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Release {
    #[default]
    NotSent,
    BatchItem,
    Acknowledged,
}

impl<const N: usize> World<N> {
    pub(crate) fn new(stock: u8, mistake: Option<Mistake>) -> Self {
        Self { stock, mistake, free: stock, rivals: 0, attempts: [Attempt::default(); N] }
    }

    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// The attempt that the key belongs to.
    pub(crate) fn key_holder(&self) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.row.is_some_and(State::holds_key))
    }

    /// The first invariant that does not hold.
    pub(crate) fn broken(&self) -> Option<Invariant> {
        let taken = self.attempts.iter().filter(|it| it.has_stock()).count();
        let under_the_key = self.attempts.iter().filter(|it| it.is_intent() || it.shown().is_some()).count();
        let any = |wrong: fn(&Attempt) -> bool| self.attempts.iter().any(wrong);
        let checks = [
            (Invariant::I1, usize::from(self.free + self.rivals) + taken != usize::from(self.stock)),
            (Invariant::I2, any(|it| it.is_open_order() && !it.has_stock())),
            (Invariant::I3, any(|it| it.has_stock() && it.row.is_none_or(|row| row == State::Cancelled))),
            (Invariant::I4, under_the_key > 1),
            (Invariant::I4, any(|it| it.told_4xx && it.row.is_some_and(State::holds_key))),
            (Invariant::I5, any(|it| it.told_201 && it.shown().is_none())),
            (Invariant::I6, any(|it| it.told_4xx && (it.told_201 || it.shown().is_some()))),
        ];
        checks.into_iter().find(|(_, broken)| *broken).map(|(invariant, _)| invariant)
    }

    /// Whether nothing is left to be done.
    pub(crate) fn is_settled(&self) -> bool {
        self.attempts.iter().all(Attempt::is_settled)
    }

    /// The same world with its attempts in a fixed order. They are alike, so it does not matter which of them does what,
    /// and a search need not look at worlds that differ only in that.
    pub(crate) fn sorted(mut self) -> Self {
        self.attempts.sort_unstable_by_key(Attempt::code);
        self
    }

    /// All of it that changes, in one number.
    pub(crate) fn code(&self) -> u64 {
        let units = u64::from(self.free << 2 | self.rivals);
        self.attempts.iter().fold(units, |code, attempt| code << 15 | u64::from(attempt.code()))
    }
}

impl Attempt {
    fn has_stock(&self) -> bool {
        self.reservation == Some(ReservationStatus::Taken)
    }

    fn is_intent(&self) -> bool {
        self.row == Some(State::Placing)
    }

    fn shown(&self) -> Option<OrderStatus> {
        self.row.and_then(State::shown)
    }

    /// Whether it is an order, and one that was not cancelled.
    fn is_open_order(&self) -> bool {
        self.shown().is_some_and(|status| status != OrderStatus::Cancelled)
    }

    fn is_settled(&self) -> bool {
        let row_rests = self.row.is_none_or(|row| row.shown().is_some() && !row.wants_release());
        row_rests && self.has_stock() == self.is_open_order() && !self.take_sent && !self.release_sent
    }

    /// All of it in one number of 15 bits.
    fn code(&self) -> u16 {
        let row = self.row.map_or(0, |row| row as u16 + 1);
        let reservation = self.reservation.map_or(0, |reservation| reservation as u16 + 1);
        let code = (row << 3 | self.task as u16) << 4 | reservation << 2 | self.release as u16;
        let flags = [self.take_sent, self.release_sent, self.told_201, self.told_4xx];
        flags.into_iter().fold(code, |code, flag| code << 1 | u16::from(flag))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row.map_or("no row".to_owned(), |row| format!("row {row:?}"));
        let reservation =
            self.reservation.map_or("not reserved".to_owned(), |status| format!("reservation {status:?}"));
        write!(f, "{row}, {reservation}")
    }
}
