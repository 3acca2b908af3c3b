//! `dormouse doctor --data`: whether everything that is stored holds together, asked of the
//! database itself. It only reads, and the services may run meanwhile.

use std::io::IsTerminal as _;

use dormouse_core::store::{
    Clock,
    check::{Inspector, PATIENCE, Progress, Violation},
};

use crate::{
    args::{Doctor, Format},
    commands::Ctx,
    config::sources,
    exit::Exit,
    output::{print, print_json, say},
};

/// What was looked at.
#[derive(Default)]
struct Looked {
    instances: u64,
    images: u64,
    violations: u64,
}

pub(crate) async fn data(ctx: &Ctx, args: Doctor) -> anyhow::Result<Exit> {
    let settings = sources(&ctx.global, args.flags)?.load()?;
    let database = settings.store_options(&settings.data_dir()?).database;
    let mut inspector = Inspector::open(&database, Clock::Database, PATIENCE).await?;
    let (mut looked, mut documents) = (Looked::default(), Vec::new());
    let mut next = Progress::default();
    while !next.is_over() {
        let page = inspector.page(next).await?;
        looked.instances += page.instances;
        looked.images += page.images;
        looked.violations += page.violations.len() as u64;
        for violation in &page.violations {
            match ctx.screen.format {
                Format::Json => documents.push(document(violation)),
                Format::Ids => print(&format!("{}\n", violation.subject))?,
                Format::Table => print(&line(violation))?,
            }
        }
        if ctx.screen.draws_progress() && std::io::stdout().is_terminal() && looked.instances % 50_000 == 0 {
            say(&format!("{} instances looked at", looked.instances));
        }
        next = page.next;
    }
    inspector.close().await;
    if ctx.screen.format == Format::Json {
        print_json(&serde_json::json!({
            "instances": looked.instances,
            "images": looked.images,
            "violations": documents,
        }))?;
    }
    summarise(ctx, &looked);
    Ok(if looked.violations == 0 { Exit::Done } else { Exit::Violated })
}

fn line(violation: &Violation) -> String {
    let Violation { tenant, subject, invariant, sentence } = violation;
    let whose = if tenant.is_empty() || tenant == "default" { String::new() } else { format!("{tenant}/") };
    format!("{whose}{subject}: {sentence} (invariant {invariant})\n")
}

fn document(violation: &Violation) -> serde_json::Value {
    let Violation { tenant, subject, invariant, sentence } = violation;
    serde_json::json!({ "tenant": tenant, "subject": subject, "invariant": invariant, "message": sentence })
}

fn summarise(ctx: &Ctx, looked: &Looked) {
    if ctx.screen.format != Format::Table {
        return;
    }
    let Looked { instances, images, violations } = looked;
    let found = match violations {
        0 => "nothing is lost or stuck".to_owned(),
        1 => "1 violation".to_owned(),
        n => format!("{n} violations"),
    };
    say(&format!("{instances} instances and {images} images looked at: {found}"));
}
