//! The state of the model, and its invariants.

use std::fmt;

use order_service::order::State;
use shared::orders::OrderStatus;
use shared::products::ReservationStatus;

use crate::Mistake;

/// The invariants of the order protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// No unit appears or disappears: each is free, reserved for an order, or sold to another customer.
    I1,
    /// An order that is not cancelled has its reservation.
    I2,
    /// Each reservation has a row that is not cancelled, so that it can be released.
    I3,
    /// A key belongs to at most one order or intent. An attempt with a 4xx response has freed its key.
    I4,
    /// An order in a 201 response stays readable.
    I5,
    /// An attempt with a 4xx response never becomes an order.
    I6,
}

/// The state of all services: one product, and `N` attempts to order one unit of it.
#[derive(Clone, Copy)]
pub(crate) struct World<const N: usize> {
    /// The total number of units; constant.
    pub(crate) stock: u8,
    /// The mistake in the protocol; constant.
    pub(crate) mistake: Option<Mistake>,
    /// The units that are not reserved or sold.
    pub(crate) free: u8,
    /// The units sold to other customers.
    pub(crate) sold_to_others: u8,
    pub(crate) attempts: [Attempt; N],
}

/// One attempt, with its own order id.
#[derive(Clone, Copy, Default)]
pub(crate) struct Attempt {
    pub(crate) task: Task,
    /// The row in the store of order-service.
    pub(crate) row: Option<State>,
    /// The reservation in the store of product-service.
    pub(crate) reservation: Option<ReservationStatus>,
    /// A reservation request is in transit. It stays so after it has arrived, because it may be duplicated, until it is
    /// lost.
    pub(crate) reserve_sent: bool,
    /// A release is in transit, in the same sense.
    pub(crate) release_sent: bool,
    pub(crate) release: Release,
    /// A client has got 201 with this order.
    pub(crate) got_201: bool,
    /// The client of this attempt has got a 4xx.
    pub(crate) got_4xx: bool,
}

/// The progress of the task that places the order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Task {
    #[default]
    NotStarted,
    /// It has recorded the intent and sent the reservation request.
    Reserving,
    /// The stock is reserved.
    Reserved,
    /// The reservation was rejected.
    Rejected,
    /// Settling has failed, or its result is unknown.
    Failing,
    /// It has responded, or died.
    Ended,
}

/// The progress of the release, by the reconciler or by the task of the attempt.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Release {
    #[default]
    NotSent,
    Sent,
    Acknowledged,
}

impl<const N: usize> World<N> {
    pub(crate) fn new(stock: u8, mistake: Option<Mistake>) -> Self {
        Self { stock, mistake, free: stock, sold_to_others: 0, attempts: [Attempt::default(); N] }
    }

    pub(crate) fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// Returns the attempt that holds the key.
    pub(crate) fn key_holder(&self) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.row.is_some_and(State::holds_key))
    }

    /// Returns the first invariant that is broken.
    pub(crate) fn broken(&self) -> Option<Invariant> {
        let reserved = self.attempts.iter().filter(|it| it.has_stock()).count();
        let with_key = self.attempts.iter().filter(|it| it.is_intent() || it.status().is_some()).count();
        let any = |wrong: fn(&Attempt) -> bool| self.attempts.iter().any(wrong);
        let checks = [
            (Invariant::I1, usize::from(self.free + self.sold_to_others) + reserved != usize::from(self.stock)),
            (Invariant::I2, any(|it| it.is_open_order() && !it.has_stock())),
            (Invariant::I3, any(|it| it.has_stock() && it.row.is_none_or(|row| row == State::Cancelled))),
            (Invariant::I4, with_key > 1),
            (Invariant::I4, any(|it| it.got_4xx && it.row.is_some_and(State::holds_key))),
            (Invariant::I5, any(|it| it.got_201 && it.status().is_none())),
            (Invariant::I6, any(|it| it.got_4xx && (it.got_201 || it.status().is_some()))),
        ];
        checks.into_iter().find(|(_, broken)| *broken).map(|(invariant, _)| invariant)
    }

    /// Returns whether nothing is left to do.
    pub(crate) fn is_settled(&self) -> bool {
        self.attempts.iter().all(Attempt::is_settled)
    }

    /// Returns the same world with its attempts sorted. Attempts are interchangeable, so the search visits only one of
    /// the worlds that differ in their order.
    pub(crate) fn sorted(mut self) -> Self {
        self.attempts.sort_unstable_by_key(Attempt::code);
        self
    }

    /// Returns everything that changes as one number.
    pub(crate) fn code(&self) -> u64 {
        let units = u64::from(self.free << 2 | self.sold_to_others);
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

    fn status(&self) -> Option<OrderStatus> {
        self.row.and_then(State::visible_status)
    }

    /// Returns whether the row is an order that is not cancelled.
    fn is_open_order(&self) -> bool {
        self.status().is_some_and(|status| status != OrderStatus::Cancelled)
    }

    fn is_settled(&self) -> bool {
        let row_is_final = self.row.is_none_or(|row| row.visible_status().is_some() && !row.needs_release());
        row_is_final && self.has_stock() == self.is_open_order() && !self.reserve_sent && !self.release_sent
    }

    /// Returns the whole attempt as a number of 15 bits.
    fn code(&self) -> u16 {
        let row = self.row.map_or(0, |row| row as u16 + 1);
        let reservation = self.reservation.map_or(0, |reservation| reservation as u16 + 1);
        let code = (row << 3 | self.task as u16) << 4 | reservation << 2 | self.release as u16;
        let flags = [self.reserve_sent, self.release_sent, self.got_201, self.got_4xx];
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
