//! What the settings mean for an environment. The keys themselves stand in [`dormouse_core::config`].

use std::{collections::BTreeMap, ffi::OsString};

use dormouse_core::config::Settings;

use crate::{
    attempts::Retention,
    service::{Core, Options},
};

/// How an environment runs with these settings; `core` says where core is if they do not.
pub fn options(settings: &Settings, core: Core, environment: BTreeMap<OsString, OsString>) -> Options {
    let values = &settings.values;
    let named: Vec<String> = values.core_addresses.iter().map(|address| address.0.clone()).collect();
    Options {
        listen: values.environment_listen,
        advertise: values.advertise_environment.clone(),
        core: if named.is_empty() { core } else { Core::At(named) },
        name: settings.name(),
        slots: values.slots.map(|slots| usize::try_from(slots).unwrap_or(usize::MAX)),
        environment,
        launch_deadline: values.launch_deadline,
        idle_before_suspend: values.idle_before_suspend,
        image_bytes: values.image_bytes.0,
        stream_bytes: values.output_stream_bytes.0,
        retention: Retention {
            instance_bytes: values.output_instance_bytes.0,
            node_bytes: values.output_node_bytes.0,
        },
        connections: usize::try_from(values.environment_connections).unwrap_or(usize::MAX),
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::config::Sources;

    use super::*;
    use crate::{environment, scheduler, supervisor};

    #[test]
    fn defaults_are_those_of_the_components() {
        let settings = Sources::default().load().expect("defaults are good");
        let options = options(&settings, Core::At(Vec::new()), BTreeMap::new());
        let node = environment::Options::new(String::new(), Vec::new(), String::new());
        assert_eq!(settings.values.lease, dormouse_core::store::DEFAULT_LEASE);
        assert_eq!(options.image_bytes, node.image_bytes);
        assert_eq!(options.stream_bytes, supervisor::Options::default().stream_bytes);
        assert_eq!(options.launch_deadline, scheduler::Options::default().launch_deadline);
        assert_eq!(options.connections, crate::limits::PLACES.connections);
        assert_eq!(options.connections.div_ceil(2), crate::limits::CONNECTIONS_OF_TENANT);
        let Retention { instance_bytes, node_bytes } = node.retention;
        assert_eq!(
            (options.retention.instance_bytes, options.retention.node_bytes),
            (instance_bytes, node_bytes)
        );
    }
}
