//! The contract, a case written once and run on both databases.

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
}

mod life;
