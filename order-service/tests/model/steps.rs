//! The transitions of the model.

use std::mem;

use order_service::order::{AfterRelease, State};
use shared::orders::OrderStatus;
use shared::products::{ReservationStatus, ReserveAction};

use crate::Mistake;
use crate::world::{Attempt, Release, Task, World};

/// A transition.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// Whether it needs no other customer, no client, and no task that places an order.
    pub(crate) is_calm: bool,
    /// The attempt that it belongs to, if any.
    attempt: Option<usize>,
}

impl Step {
    /// Returns a line with the step and its result.
    pub(crate) fn describe<const N: usize>(&self, after: &World<N>) -> String {
        match self.attempt {
            Some(at) => format!("\n  {}: {:<38} {}", ["A", "B", "C"][at], self.name, after.attempts[at]),
            None => format!("\n     {:<38} {} free", self.name, after.free),
        }
    }
}

/// Lists steps with their names.
macro_rules! steps {
    ($($step:ident)*) => { &[$((stringify!($step), Self::$step)),*] };
}

/// A step of no attempt, with its name.
type GlobalStep<W> = (&'static str, fn(W) -> Option<W>);
/// A step of one attempt, with its name.
type AttemptStep<W> = (&'static str, fn(W, usize) -> Option<W>);

impl<const N: usize> World<N> {
    const OTHER_CUSTOMERS: &[GlobalStep<Self>] = steps! { other_customer_buys other_customer_returns };

    const TASKS_AND_CLIENTS: &[AttemptStep<Self>] = steps! {
        attempt_starts attempt_finds_the_order attempt_finds_another_in_progress
        reserve_is_retried reserve_is_granted reserve_is_granted_again
        reserve_is_rejected_for_lack_of_stock reserve_is_rejected_as_released
        order_is_settled settle_response_is_lost settle_finds_it_aborted
        attempt_is_rejected attempt_fails attempt_finds_itself_settled order_service_dies
        order_is_confirmed order_is_shipped order_is_delivered order_is_cancelled
    };

    /// These steps alone must be able to settle every world.
    const MESSAGES_AND_RECONCILER: &[AttemptStep<Self>] = steps! {
        reserve_arrives reserve_is_lost release_arrives release_is_lost
        reconciler_aborts reconciler_sends_release reconciler_times_out
        release_is_acknowledged row_is_finished
    };

    /// Returns every possible next step, with the world after it.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (Step, Self)> {
        let global = Self::OTHER_CUSTOMERS.iter().filter_map(|&(name, happens)| {
            let step = Step { name, is_calm: false, attempt: None };
            Some((step, happens(*self)?))
        });
        global.chain((0..N).flat_map(|at| self.steps_of(at)))
    }

    fn steps_of(&self, at: usize) -> impl Iterator<Item = (Step, Self)> {
        let busy = Self::TASKS_AND_CLIENTS.iter().map(|step| (step, false));
        let calm = Self::MESSAGES_AND_RECONCILER.iter().map(|step| (step, true));
        busy.chain(calm).filter_map(move |(&(name, happens), is_calm)| {
            let step = Step { name, is_calm, attempt: Some(at) };
            Some((step, happens(*self, at)?))
        })
    }

    pub(crate) fn step_names() -> impl Iterator<Item = &'static str> {
        let per_attempt = Self::TASKS_AND_CLIENTS.iter().chain(Self::MESSAGES_AND_RECONCILER);
        Self::OTHER_CUSTOMERS.iter().map(|step| step.0).chain(per_attempt.map(|step| step.0))
    }
}

/// The steps. Each is at most one statement in one store, with the message that triggers it or that it sends. It is
/// never two statements, because anything may happen between them. `None` if the step is impossible.
impl<const N: usize> World<N> {
    fn other_customer_buys(self) -> Option<Self> {
        Some(Self { free: self.free.checked_sub(1)?, sold_to_others: self.sold_to_others + 1, ..self })
    }

    fn other_customer_returns(self) -> Option<Self> {
        Some(Self { free: self.free + 1, sold_to_others: self.sold_to_others.checked_sub(1)?, ..self })
    }

    /// The intent is recorded, if the key is free, and the reservation request is sent.
    fn attempt_starts(mut self, at: usize) -> Option<Self> {
        let key_is_free = self.key_holder().is_none();
        let attempt = self.with_task(at, &[Task::NotStarted]).filter(|_| key_is_free)?;
        *attempt = Attempt { row: Some(State::Placing), task: Task::Reserving, reserve_sent: true, ..*attempt };
        Some(self)
    }

    /// The key belongs to an order, which is returned.
    fn attempt_finds_the_order(mut self, at: usize) -> Option<Self> {
        let holder = self.key_holder()?;
        self.with_task(at, &[Task::NotStarted])?.task = Task::Ended;
        let order = &mut self.attempts[holder];
        order.row?.visible_status()?;
        order.got_201 = true;
        Some(self)
    }

    /// The key belongs to an intent: 409.
    fn attempt_finds_another_in_progress(mut self, at: usize) -> Option<Self> {
        let holder = self.key_holder()?;
        self.with_task(at, &[Task::NotStarted])?.task = Task::Ended;
        self.attempts[holder].row?.visible_status().is_none().then_some(self)
    }

    fn reserve_is_retried(mut self, at: usize) -> Option<Self> {
        self.with_task(at, &[Task::Reserving])?.reserve_sent = true;
        Some(self)
    }

    fn reserve_is_granted(self, at: usize) -> Option<Self> {
        self.reserve_is_answered(at, ReserveResponse::Granted, Task::Reserved)
    }

    fn reserve_is_granted_again(self, at: usize) -> Option<Self> {
        self.reserve_is_answered(at, ReserveResponse::GrantedAgain, Task::Reserved)
    }

    fn reserve_is_rejected_for_lack_of_stock(self, at: usize) -> Option<Self> {
        self.reserve_is_answered(at, ReserveResponse::InsufficientStock, Task::Rejected)
    }

    fn reserve_is_rejected_as_released(self, at: usize) -> Option<Self> {
        self.reserve_is_answered(at, ReserveResponse::Released, Task::Rejected)
    }

    fn order_is_settled(mut self, at: usize) -> Option<Self> {
        let attempt = self.settle(at)?;
        attempt.got_201 = true;
        attempt.task = Task::Ended;
        Some(self)
    }

    /// The row is settled and the response of the store is lost, so the task does not know the result.
    fn settle_response_is_lost(mut self, at: usize) -> Option<Self> {
        self.settle(at)?.task = Task::Failing;
        Some(self)
    }

    /// Only a row that is still `placing` can be settled.
    fn settle_finds_it_aborted(mut self, at: usize) -> Option<Self> {
        let attempt = self.with_task(at, &[Task::Reserved])?;
        attempt.task = Task::Failing;
        attempt.row.and_then(State::settle).is_none().then_some(self)
    }

    /// The response is 4xx: insufficient stock, an unknown user, or another price.
    fn attempt_is_rejected(mut self, at: usize) -> Option<Self> {
        self.with_task(at, &[Task::Reserving, Task::Reserved, Task::Rejected])?.got_4xx = true;
        self.abort(at);
        Some(self)
    }

    /// The response is 503: a timeout, or a service or store is down.
    fn attempt_fails(mut self, at: usize) -> Option<Self> {
        self.with_task(at, &[Task::Reserving, Task::Reserved, Task::Rejected, Task::Failing])?;
        self.abort(at);
        Some(self)
    }

    /// The intent cannot be aborted because it is an order: the response of the store was lost. The client gets 201.
    fn attempt_finds_itself_settled(mut self, at: usize) -> Option<Self> {
        let attempt = self.with_task(at, &[Task::Failing])?;
        attempt.row?.visible_status()?;
        attempt.got_201 = true;
        attempt.task = Task::Ended;
        Some(self)
    }

    /// The process of the task dies. Several deaths are several steps. A reconciler that dies is like one that times out.
    fn order_service_dies(mut self, at: usize) -> Option<Self> {
        self.with_task(at, &[Task::Reserving, Task::Reserved, Task::Rejected, Task::Failing])?.task = Task::Ended;
        Some(self)
    }

    fn order_is_confirmed(self, at: usize) -> Option<Self> {
        self.client_requests(at, OrderStatus::Confirmed)
    }

    fn order_is_shipped(self, at: usize) -> Option<Self> {
        self.client_requests(at, OrderStatus::Shipped)
    }

    fn order_is_delivered(self, at: usize) -> Option<Self> {
        self.client_requests(at, OrderStatus::Delivered)
    }

    fn order_is_cancelled(self, at: usize) -> Option<Self> {
        self.client_requests(at, OrderStatus::Cancelled)
    }

    /// The request arrives late or twice, or its response is lost: the task does not get it.
    fn reserve_arrives(mut self, at: usize) -> Option<Self> {
        self.reserve(at)?;
        Some(self)
    }

    fn reserve_is_lost(mut self, at: usize) -> Option<Self> {
        mem::take(&mut self.attempts[at].reserve_sent).then_some(self)
    }

    /// The release arrives, and its response is lost.
    fn release_arrives(mut self, at: usize) -> Option<Self> {
        self.release(at)?;
        Some(self)
    }

    fn release_is_lost(mut self, at: usize) -> Option<Self> {
        mem::take(&mut self.attempts[at].release_sent).then_some(self)
    }

    /// At any moment: no safety depends on the age of the intent.
    fn reconciler_aborts(mut self, at: usize) -> Option<Self> {
        let row = &mut self.attempts[at].row;
        *row = Some(row.and_then(State::abort)?);
        Some(self)
    }

    fn reconciler_sends_release(mut self, at: usize) -> Option<Self> {
        let needed = self.attempts[at].row?.needs_release();
        let attempt = self.with_release(at, &[Release::NotSent]).filter(|_| needed)?;
        attempt.release_sent = true;
        attempt.release = Release::Sent;
        if self.makes(Mistake::FinishBeforeReleased) {
            self.attempts[at].finish();
        }
        Some(self)
    }

    fn reconciler_times_out(mut self, at: usize) -> Option<Self> {
        self.with_release(at, &[Release::Sent, Release::Acknowledged])?.release = Release::NotSent;
        Some(self)
    }

    fn release_is_acknowledged(mut self, at: usize) -> Option<Self> {
        self.release(at)?;
        self.with_release(at, &[Release::Sent])?.release = Release::Acknowledged;
        Some(self)
    }

    /// Only after the acknowledgement, because the row is the only record of the reservation. A row may be finished
    /// twice: by two replicas, or by the reconciler and the task of the attempt.
    fn row_is_finished(mut self, at: usize) -> Option<Self> {
        self.with_release(at, &[Release::Acknowledged])?.finish();
        Some(self)
    }
}

/// The response of product-service to a reservation request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReserveResponse {
    Granted,
    GrantedAgain,
    InsufficientStock,
    Released,
}

/// The parts of the steps.
impl<const N: usize> World<N> {
    /// Returns an attempt, if its task has one of these states.
    fn with_task(&mut self, at: usize, tasks: &[Task]) -> Option<&mut Attempt> {
        Some(&mut self.attempts[at]).filter(|attempt| tasks.contains(&attempt.task))
    }

    /// Returns an attempt, if its release has one of these states.
    fn with_release(&mut self, at: usize, releases: &[Release]) -> Option<&mut Attempt> {
        Some(&mut self.attempts[at]).filter(|attempt| releases.contains(&attempt.release))
    }

    /// The store turns an intent into an order, if the task is ready and the row is still an intent.
    fn settle(&mut self, at: usize) -> Option<&mut Attempt> {
        let ready = if self.makes(Mistake::SettleBeforeReserved) { Task::Reserving } else { Task::Reserved };
        let regardless = self.makes(Mistake::SettleRegardless);
        let attempt = self.with_task(at, &[ready])?;
        let row = attempt.row?;
        attempt.row = Some(if regardless { State::Pending } else { row.settle()? });
        Some(attempt)
    }

    /// The store aborts the row, if it is still an intent, and the task ends.
    fn abort(&mut self, at: usize) {
        let mistake = self.mistake;
        let attempt = &mut self.attempts[at];
        let aborting = attempt.row.and_then(State::abort);
        attempt.row = aborting.or(attempt.row);
        if mistake == Some(Mistake::ReleaseRegardless) {
            attempt.release_sent = true;
        }
        if mistake == Some(Mistake::NoReleaseAfterRejection) && attempt.task == Task::Rejected {
            attempt.finish();
        }
        attempt.task = Task::Ended;
    }

    /// A client requests a step from the status that it sees.
    fn client_requests(mut self, at: usize, status: OrderStatus) -> Option<Self> {
        let attempt = &mut self.attempts[at];
        let seen = attempt.row?.visible_status()?;
        attempt.row = Some(State::from_status(seen).step(status)?);
        Some(self)
    }

    /// The reservation request arrives and the task gets the response. (A task that gets it late is one that pauses.)
    fn reserve_is_answered(mut self, at: usize, response: ReserveResponse, then: Task) -> Option<Self> {
        let given = self.reserve(at)?;
        self.with_task(at, &[Task::Reserving])?.task = then;
        (given == response).then_some(self)
    }

    /// product-service handles a reservation request, if one is in transit.
    fn reserve(&mut self, at: usize) -> Option<ReserveResponse> {
        let attempt = &mut self.attempts[at];
        if !attempt.reserve_sent {
            return None;
        }
        Some(match ReservationStatus::on_reserve(attempt.reservation) {
            ReserveAction::Reserve if self.free == 0 => ReserveResponse::InsufficientStock,
            ReserveAction::Reserve => {
                self.free -= 1;
                attempt.reservation = Some(ReservationStatus::Taken);
                ReserveResponse::Granted
            }
            ReserveAction::ReturnExisting => ReserveResponse::GrantedAgain,
            ReserveAction::Reject => ReserveResponse::Released,
        })
    }

    /// product-service handles a release, if one is in transit.
    fn release(&mut self, at: usize) -> Option<()> {
        let leaves_tombstone = !self.makes(Mistake::NoTombstone);
        let attempt = &mut self.attempts[at];
        if !attempt.release_sent {
            return None;
        }
        if ReservationStatus::release_returns_stock(attempt.reservation) {
            self.free += 1;
        }
        if attempt.reservation.is_some() || leaves_tombstone {
            attempt.reservation = Some(ReservationStatus::after_release(attempt.reservation));
        }
        Some(())
    }
}

impl Attempt {
    /// The store finishes a row whose stock is released.
    fn finish(&mut self) {
        match self.row.and_then(State::after_release) {
            Some(AfterRelease::Deleted) => self.row = None,
            Some(AfterRelease::Kept(state)) => self.row = Some(state),
            None => {}
        }
    }
}
