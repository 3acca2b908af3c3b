//! One JSON object a line: `timestamp` (RFC 3339, UTC), `level`, `target`, `message`, and beside
//! them the fields of the event and of the spans around it, the innermost first.

use std::{fmt, io::Write};

use serde_json::{Map, Value};
use tracing::{
    Event, Id, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
};
use tracing_subscriber::{
    fmt::{MakeWriter, time::FormatTime as _},
    layer::{Context, Layer},
    registry::LookupSpan,
};

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Lines<W> {
    writer: W,
}

/// What a span was given; kept with it.
#[derive(Debug, Default)]
struct Fields(Map<String, Value>);

impl<W> Lines<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let line = line(event, &context);
        let mut writer = self.writer.make_writer_for(event.metadata());
        // In one write, so that lines of several processes on one stream stay whole. If stderr
        // fails there is nobody left to tell.
        drop(writer.write_all(line.as_bytes()));
    }
}

fn line<S>(event: &Event<'_>, context: &Context<'_, S>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    for span in context.event_scope(event).into_iter().flatten() {
        if let Some(outer) = span.extensions().get::<Fields>() {
            for (name, value) in &outer.0 {
                // What is nearer to the event stays.
                fields.0.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    let message = fields.0.remove("message").unwrap_or_default();
    let head = [
        ("timestamp", now().into()),
        ("level", metadata.level().as_str().into()),
        ("target", metadata.target().into()),
        ("message", message),
    ];
    let mut line = String::from("{");
    // An object has each name once.
    let rest = fields.0.iter().filter(|(name, _)| head.iter().all(|(taken, _)| taken != name));
    for (name, value) in
        head.iter().map(|(name, value)| (*name, value)).chain(rest.map(|(n, v)| (n.as_str(), v)))
    {
        let comma = if line.len() > 1 { "," } else { "" };
        line.push_str(&format!("{comma}{}:{value}", Value::from(name)));
    }
    line.push_str("}\n");
    line
}

fn now() -> String {
    let mut text = String::new();
    let mut writer = tracing_subscriber::fmt::format::Writer::new(&mut text);
    tracing_subscriber::fmt::time::SystemTime.format_time(&mut writer).expect("a string takes everything");
    text
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, value.to_string().into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("whole").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<Map<String, Value>> {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(Lines::new(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().expect("whole").clone()).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    #[test]
    fn a_line_is_one_object_with_all_fields_at_the_top() {
        let lines = lines(|| {
            let _node = crate::logging::node(&"n1").entered();
            let _attempt = crate::logging::attempt(&"default", &"order-1", 3).entered();
            tracing::warn!(n = 4, attempt = 9, text = "a\n\"b\"", "it {}", "happened");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("{name}: {line:?}"));
        assert_eq!((text("level"), text("message")), ("WARN", "it happened"));
        assert_eq!((text("tenant"), text("instance"), text("node")), ("default", "order-1", "n1"));
        assert_eq!((&line["n"], text("text")), (&Value::from(4), "a\n\"b\""));
        assert_eq!(line["attempt"], 9, "the event's own field wins over its span's");
        assert!(text("target").contains("logging"));
        let time = text("timestamp");
        assert!(time.len() > 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{time}");
    }

    #[test]
    fn a_field_may_be_told_later() {
        let lines = lines(|| {
            let span = crate::logging::request(&"default");
            span.in_scope(|| tracing::info!("before"));
            span.in_scope(|| {
                crate::logging::request_of(&"a");
                tracing::info!("after");
            });
        });
        assert_eq!((lines[0].get("instance"), &lines[1]["instance"]), (None, &Value::from("a")));
    }
}
