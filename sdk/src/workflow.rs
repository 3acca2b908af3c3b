//! Entry points: an author's functions behind one face, and the names of an image.

use std::{any::type_name, fmt, future::Future, pin::Pin, sync::Arc};

use dormouse_proto::instance::Payload;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    blocking,
    context::Context,
    error::{Failure, Result, code},
    operation,
};

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Payload>>>>;

/// A workflow's function, whatever its types.
#[derive(Clone)]
pub(crate) enum Entry {
    Asynchronous(Arc<dyn Fn(Context) -> Running + Send + Sync>),
    Blocking(Arc<dyn Fn(blocking::Context) -> Result<Payload> + Send + Sync>),
}

/// A function that can be a workflow: `async fn(Context, Input) -> Result<Output, E>`, or
/// `fn(blocking::Context, Input) -> Result<Output, E>`.
///
/// `Input` is read from the instance's input (JSON; one that was not given is `null`), `Output` is written
/// as its output, and `E` is a [`Failure`] or becomes one. `M` only tells the two forms apart.
pub trait Function<M>: Send + Sync + 'static {
    #[doc(hidden)]
    fn workflow(self, name: &'static str) -> Workflow;
}

/// Marks the asynchronous form.
#[derive(Debug)]
pub struct IsAsynchronous<I, Fut>(std::marker::PhantomData<fn(I) -> Fut>);

/// Marks the synchronous form.
#[derive(Debug)]
pub struct IsBlocking<I>(std::marker::PhantomData<fn(I)>);

impl<F, I, Fut, O, E> Function<IsAsynchronous<I, Fut>> for F
where
    F: Fn(Context, I) -> Fut + Send + Sync + 'static,
    I: DeserializeOwned + 'static,
    Fut: Future<Output = Result<O, E>> + 'static,
    O: Serialize,
    E: Into<Failure>,
{
    fn workflow(self, name: &'static str) -> Workflow {
        let run = move |ctx: Context| -> Running {
            let started = input(&ctx).map(|input| self(ctx, input));
            Box::pin(async move { output(started?.await) })
        };
        Workflow { name, entry: Entry::Asynchronous(Arc::new(run)) }
    }
}

impl<F, I, O, E> Function<IsBlocking<I>> for F
where
    F: Fn(blocking::Context, I) -> Result<O, E> + Send + Sync + 'static,
    I: DeserializeOwned,
    O: Serialize,
    E: Into<Failure>,
{
    fn workflow(self, name: &'static str) -> Workflow {
        let run = move |ctx: blocking::Context| {
            let input = input(ctx.inner())?;
            output(self(ctx, input))
        };
        Workflow { name, entry: Entry::Blocking(Arc::new(run)) }
    }
}

fn input<I: DeserializeOwned>(ctx: &Context) -> Result<I> {
    let facts = &ctx.ledger().facts;
    operation::decode(&facts.input).map_err(|reason| {
        let (given, expected) = (operation::stored_type(&facts.input), type_name::<I>());
        let message = format!(
            "the input cannot be read: given is JSON of {given}, workflow {:?} expects {expected}: {reason}",
            facts.workflow
        );
        Failure::new(code::INPUT_UNREADABLE, message).permanent()
    })
}

fn output<O: Serialize, E: Into<Failure>>(result: Result<O, E>) -> Result<Payload> {
    operation::encode("the output", &result.map_err(Into::into)?)
}

/// A named entry point of an image.
#[derive(Clone)]
pub struct Workflow {
    pub(crate) name: &'static str,
    pub(crate) entry: Entry,
}

impl Workflow {
    /// A workflow that is started by `name`.
    pub fn new<M>(name: &'static str, function: impl Function<M>) -> Self {
        function.workflow(name)
    }

    /// The name by which it is started.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

impl fmt::Debug for Workflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workflow").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The workflow of this name; an empty name means the image's only one.
pub(crate) fn find<'a>(workflows: &'a [Workflow], name: &str) -> Result<&'a Workflow> {
    if let ([only], "") = (workflows, name) {
        return Ok(only);
    }
    workflows.iter().find(|workflow| workflow.name == name).ok_or_else(|| {
        let known: Vec<_> = workflows.iter().map(|workflow| format!("{:?}", workflow.name)).collect();
        let message = format!("this image holds no workflow {name:?}; it holds {}", known.join(", "));
        Failure::new(code::UNKNOWN_WORKFLOW, message).permanent()
    })
}

/// The content of the section `.dormouse`: what an image says about itself without being run.
pub mod section {
    /// `dormouse-sdk VERSION protocol N`, the first line.
    const HEAD: &str = concat!("dormouse-sdk ", env!("CARGO_PKG_VERSION"), " protocol ");
    const PROTOCOL: u32 = <dormouse_proto::call::InstanceProtocol as dormouse_proto::call::Protocol>::VERSION;

    /// The last segment of a path as `stringify!` writes it.
    #[must_use]
    pub const fn last_segment(path: &'static str) -> &'static str {
        let bytes = path.as_bytes();
        let mut start = bytes.len();
        while start > 0 && bytes[start - 1] != b':' && bytes[start - 1] != b' ' {
            start -= 1;
        }
        path.split_at(start).1
    }

    const fn digits(number: u32) -> usize {
        let mut rest = number / 10;
        let mut n = 1;
        while rest > 0 {
            rest /= 10;
            n += 1;
        }
        n
    }

    /// How long the section is.
    #[must_use]
    pub const fn len(names: &[&str]) -> usize {
        let mut len = HEAD.len() + digits(PROTOCOL) + 1;
        let mut i = 0;
        while i < names.len() {
            len += names[i].len() + 1;
            i += 1;
        }
        len
    }

    /// The section itself: its first line, then a line for each name.
    #[must_use]
    pub const fn bytes<const N: usize>(names: &[&str]) -> [u8; N] {
        let mut section = [b'\n'; N];
        let mut at = write(&mut section, 0, HEAD.as_bytes());
        let n = digits(PROTOCOL);
        let mut rest = PROTOCOL;
        let mut i = n;
        while i > 0 {
            i -= 1;
            section[at + i] = DIGITS[(rest % 10) as usize];
            rest /= 10;
        }
        at += n + 1;
        let mut i = 0;
        while i < names.len() {
            at = write(&mut section, at, names[i].as_bytes()) + 1;
            i += 1;
        }
        section
    }

    const DIGITS: &[u8; 10] = b"0123456789";

    const fn write<const N: usize>(section: &mut [u8; N], at: usize, text: &[u8]) -> usize {
        let mut i = 0;
        while i < text.len() {
            section[at + i] = text[i];
            i += 1;
        }
        at + text.len()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_image_says_what_it_holds() {
            const NAMES: &[&str] = &["order", "fixity"];
            const SECTION: [u8; len(NAMES)] = bytes(NAMES);
            let text = std::str::from_utf8(&SECTION).unwrap();
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(text, format!("dormouse-sdk {version} protocol {PROTOCOL}\norder\nfixity\n"));
        }

        #[test]
        fn a_workflow_is_named_by_the_end_of_its_path() {
            assert_eq!(last_segment("order"), "order");
            assert_eq!(last_segment("shop::orders::order"), "order");
            assert_eq!(last_segment("shop :: order"), "order");
        }
    }
}
