//! The contract, a case written once and run on both databases.
//!
//! Each row of the request table has its module's cases; `model_bugs` has one case for each
//! rule that the model can leave out, `pairs` both orders of each pair of writers.

/// Runs each case on SQLite and on PostgreSQL.
macro_rules! contract {
    ($($case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::sqlite().await).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::postgres().await).await })+
        }
    };
    (limits: $limits:expr; $($case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::sqlite_with($limits).await).await })+
        }
        mod postgres {
            $(#[tokio::test] async fn $case() { super::$case(crate::db::postgres_with($limits).await).await })+
        }
    };
}

mod authority;
pub(crate) mod check;
mod checkpoints;
mod claims;
mod controls;
mod damage;
mod endings;
mod exits;
mod images;
mod life;
mod limits;
mod model_bugs;
mod nodes;
mod pairs;
mod quotas;
mod reads;
mod register;
mod replicas;
mod retry;
mod signals;
mod start;
mod suspend;
mod tenants;
