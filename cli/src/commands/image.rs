//! `image push | set | list | get | delete`.

use std::path::Path;

use anyhow::Context as _;
use dormouse_management_sdk::{Client, Image, ImageOptions, ImageRef, UploadProgress, Uploaded};
use indicatif::{ProgressBar, ProgressStyle};

use super::Ctx;
use crate::{
    args::{self, Format, Image as Args},
    exit::Exit,
    output::{Screen, bytes, facts, image_json, print, print_json, rfc3339, say, short_digest},
};

pub(crate) async fn image(ctx: &Ctx, args: Args) -> anyhow::Result<Exit> {
    let client = ctx.client().await?;
    match args {
        Args::Push { binary, name, version, options } => {
            let image = ImageRef { name, version: version.unwrap_or_default() };
            let mut pushed = upload(&client, &ctx.screen, &binary, &image).await?;
            if options.spares.is_some() || options.reuse.is_some() {
                pushed.image = set(&client, &pushed.image, options).await?;
            }
            print_pushed(ctx, &pushed)?;
        }
        Args::Set { image, options } => {
            let image = client.set_image(&image, wished(options)).await?;
            match ctx.screen.format {
                Format::Json => print_json(&image_json(&image))?,
                Format::Ids => print(&format!("{}\n", reference(&image)))?,
                Format::Table => print(&format!("{}: {}\n", reference(&image), kept(&image)))?,
            }
        }
        Args::List { name } => {
            let images = client.images(name.as_deref()).await?;
            ctx.screen.list(
                &images,
                &["NAME", "VERSION", "DIGEST", "SIZE", "WORKFLOWS", "PUSHED"],
                row,
                reference,
                image_json,
                "no images yet: `dormouse image push BINARY --name NAME` pushes one",
            )?;
        }
        Args::Get { image } => {
            let image = client.image(&image).await?;
            match ctx.screen.format {
                Format::Json => print_json(&image_json(&image))?,
                Format::Ids => print(&format!("{}\n", reference(&image)))?,
                Format::Table => print(&portrait(&image))?,
            }
        }
        Args::Delete { image } => {
            let count = client.delete_image(&image).await?;
            match ctx.screen.format {
                Format::Json => print_json(&serde_json::json!({ "deleted": count }))?,
                Format::Ids | Format::Table => say(&format!(
                    "deleted {count} {} of {}",
                    if count == 1 { "version" } else { "versions" },
                    image.name
                )),
            }
        }
    }
    Ok(Exit::Done)
}

/// Pushes with a bar where somebody can see it.
pub(crate) async fn upload(
    client: &Client,
    screen: &Screen,
    path: &Path,
    image: &ImageRef,
) -> anyhow::Result<Uploaded> {
    let bar = screen.draws_progress().then(|| {
        let style = ProgressStyle::with_template("{msg:>9} {wide_bar} {bytes}/{total_bytes} {eta}");
        ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    let pushed = client
        .upload_image(path, image, |progress| {
            if let Some(bar) = &bar {
                let (what, done, total) = match progress {
                    UploadProgress::Hashing { done, total } => ("hashing", done, total),
                    UploadProgress::Sending { done, total } => ("uploading", done, total),
                };
                bar.set_message(what);
                bar.set_length(total);
                bar.set_position(done);
            }
        })
        .await;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(pushed?)
}

/// Of the version that was just pushed, which may have chosen its number itself.
async fn set(client: &Client, image: &Image, options: args::ImageOptions) -> anyhow::Result<Image> {
    let image = ImageRef { name: image.name.clone(), version: image.version.clone() };
    let set = client.set_image(&image, wished(options)).await;
    set.with_context(|| format!("{image} is pushed, without spares and reuse"))
}

fn wished(args::ImageOptions { spares, reuse }: args::ImageOptions) -> ImageOptions {
    ImageOptions { spares, reuse }
}

/// How its processes are kept, in words.
fn kept(image: &Image) -> String {
    let spares = match image.spares {
        0 => "no spares".to_owned(),
        1 => "1 spare on each node".to_owned(),
        n => format!("{n} spares on each node"),
    };
    let reuse = match image.reuse {
        0 | 1 => "a process for each instance".to_owned(),
        n => format!("a process serves up to {n} instances"),
    };
    format!("{spares}, {reuse}")
}

fn print_pushed(ctx: &Ctx, pushed: &Uploaded) -> anyhow::Result<()> {
    let image = &pushed.image;
    match ctx.screen.format {
        Format::Json => print_json(&image_json(image)),
        Format::Ids => print(&format!("{}\n", reference(image))),
        Format::Table => {
            let how = if pushed.existed { "was there already" } else { "pushed" };
            print(&format!(
                "{} {how}: {}, {}, {}\n",
                reference(image),
                workflows(image),
                bytes(image.size),
                short_digest(&image.digest)
            ))?;
            say(&format!("start it with: dormouse start {}", reference(image)));
            Ok(())
        }
    }
}

fn reference(image: &Image) -> String {
    format!("{}:{}", image.name, image.version)
}

fn workflows(image: &Image) -> String {
    match image.workflows.as_slice() {
        [one] => format!("workflow {one}"),
        many => format!("workflows {}", many.join(", ")),
    }
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.name.clone(),
        image.version.clone(),
        short_digest(&image.digest),
        bytes(image.size),
        image.workflows.join(", "),
        image.created_at.map(rfc3339).unwrap_or_default(),
    ]
}

fn portrait(image: &Image) -> String {
    facts(&[
        ("Name", image.name.clone()),
        ("Version", image.version.clone()),
        ("Digest", format!("sha256:{}", image.digest)),
        ("Size", format!("{} ({} bytes)", bytes(image.size), image.size)),
        ("Workflows", image.workflows.join(", ")),
        ("SDK", image.sdk_version.clone()),
        ("Machine", image.architecture.clone()),
        ("Processes", kept(image)),
        ("Pushed", image.created_at.map(rfc3339).unwrap_or_default()),
    ])
}
