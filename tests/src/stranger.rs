//! A peer that speaks QUIC and nothing else: it writes the bytes that a test gives it, on streams
//! that it leaves open, cuts off or never reads.

use std::{fs, path::Path, time::Duration};

use dormouse_proto::{
    call::{InstanceProtocol, ManagementProtocol, Protocol},
    endpoint::{self, CORE_NAME, ENVIRONMENT_NAME, Identity},
    frame::{self, PREFIX_BYTES},
    instance, management,
};
use prost::Message;
use quinn::{Connection, RecvStream, SendStream};

/// Which of the two doors it knocks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Core, for instances: it has no token.
    Core,
    /// The environment, for controllers: it has the administrator's certificate.
    Environment,
}

/// Its connection and its one stream.
#[derive(Debug)]
pub struct Stranger {
    /// The connection.
    pub connection: Connection,
    /// Where requests are written.
    pub requests: SendStream,
    /// Where answers come.
    pub answers: RecvStream,
    _endpoint: quinn::Endpoint,
}

impl Door {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Core, Self::Environment];

    /// `host:port` of the services of a data directory.
    pub fn address(self, data: &Path) -> String {
        let file = match self {
            Self::Core => "core.address",
            Self::Environment => "environment.address",
        };
        fs::read_to_string(data.join(file)).expect("the services run").trim().to_owned()
    }

    /// A hello as it should be.
    pub fn hello(self) -> Vec<u8> {
        let frame = match self {
            Self::Core => frame::encode(&instance::ClientFrame {
                id: 1,
                operation: Some(instance::client_frame::Operation::Hello(instance::Hello {
                    protocol_version: InstanceProtocol::VERSION,
                    client: "stranger".to_owned(),
                })),
                launched: None,
            }),
            Self::Environment => frame::encode(&management::ClientFrame {
                id: 1,
                operation: Some(management::client_frame::Operation::Hello(management::Hello {
                    protocol_version: ManagementProtocol::VERSION,
                    client: "stranger".to_owned(),
                    ..management::Hello::default()
                })),
            }),
        };
        frame.expect("it is small")
    }

    /// Connects, and says nothing yet.
    pub async fn connect(self, data: &Path) -> Stranger {
        self.try_connect(data).await.unwrap_or_else(|error| panic!("{self:?} is to be reached: {error}"))
    }

    /// Connects if there is room.
    pub async fn try_connect(self, data: &Path) -> Result<Stranger, String> {
        let pki = data.join("pki");
        let authority = fs::read_to_string(pki.join("authority.pem")).expect("the services made it");
        let identity = || Identity::load(&pki.join("administrator.pem"), &pki.join("administrator.key"));
        let (config, name) = match self {
            Self::Core => (endpoint::client_config::<InstanceProtocol>(&authority, None), CORE_NAME),
            Self::Environment => {
                let identity = identity().expect("the services made it");
                let config = endpoint::client_config::<ManagementProtocol>(&authority, Some(&identity));
                (config, ENVIRONMENT_NAME)
            }
        };
        let endpoint = endpoint::client_endpoint().expect("a socket");
        let address = self.address(data);
        let connecting = endpoint::connect(&endpoint, config.expect("TLS"), &address, name);
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (requests, answers) = connection.open_bi().await.map_err(|error| error.to_string())?;
        Ok(Stranger { connection, requests, answers, _endpoint: endpoint })
    }

    /// Connects and says hello.
    pub async fn greet(self, data: &Path) -> Stranger {
        let mut stranger = self.connect(data).await;
        stranger.write(&self.hello()).await;
        stranger
    }
}

impl Stranger {
    /// Writes bytes on the main stream. That the other end has gone already is no fault of the test.
    pub async fn write(&mut self, bytes: &[u8]) {
        drop(self.requests.write_all(bytes).await);
    }

    /// Reads one frame from the main stream; `None` if the connection was closed instead.
    pub async fn read<M: Message + Default>(&mut self) -> Option<M> {
        let read = async {
            let mut prefix = [0; PREFIX_BYTES];
            self.answers.read_exact(&mut prefix).await.ok()?;
            let mut body = vec![0; usize::try_from(u32::from_be_bytes(prefix)).expect("64 bits")];
            self.answers.read_exact(&mut body).await.ok()?;
            Some(M::decode(&body[..]).expect("an answer"))
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer or an end comes")
    }

    /// Waits until the other end has closed the connection; answers the reason.
    pub async fn until_closed(&self) -> String {
        let closed = tokio::time::timeout(PATIENCE, self.connection.closed()).await;
        closed.expect("the connection is closed").to_string()
    }
}

/// Far above every deadline of a stranger, far below a hang.
const PATIENCE: Duration = Duration::from_secs(50);

/// The length prefix of a frame.
pub fn announce(bytes: usize) -> [u8; PREFIX_BYTES] {
    u32::try_from(bytes).expect("a frame's length").to_be_bytes()
}

/// A whole frame around these bytes.
pub fn framed(body: &[u8]) -> Vec<u8> {
    [&announce(body.len())[..], body].concat()
}
