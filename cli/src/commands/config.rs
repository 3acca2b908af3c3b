//! `config`: what a start of the services with these flags, variables and this file would use.

use dormouse_core::config::{Entry, Key};

use super::Ctx;
use crate::{args::Config, config::sources, exit::Exit};

pub(crate) fn config(ctx: &Ctx, args: Config) -> anyhow::Result<Exit> {
    let Config::Show(flags) = args;
    let settings = sources(&ctx.global, flags)?.load()?;
    ctx.screen.list(
        &settings.entries(),
        &["KEY", "VALUE", "FROM"],
        |entry| vec![entry.key.to_owned(), shown(entry), entry.origin.to_string()],
        |entry| entry.key.to_owned(),
        |entry| {
            let key = key_of(entry);
            serde_json::json!({
                "key": entry.key,
                "value": (!entry.value.is_empty()).then_some(&entry.value),
                "from": entry.origin.to_string(),
                "default": (!key.default.is_empty()).then_some(key.default),
                "variable": key.variables[0],
            })
        },
        "",
    )?;
    Ok(Exit::Done)
}

fn key_of(entry: &Entry) -> &'static Key {
    Key::named(entry.key).expect("entries are of keys")
}

/// What is not set says what holds instead.
fn shown(entry: &Entry) -> String {
    if entry.value.is_empty() { format!("({})", key_of(entry).absent) } else { entry.value.clone() }
}
