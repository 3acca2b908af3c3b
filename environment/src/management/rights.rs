//! The one table from operation to the least role that may ask for it.
//!
//! It is exhaustive: an operation that is added does not compile before somebody has decided
//! who may use it. Beside the role an operation only ever sees the credential's tenant.

use dormouse_core::domain::access::Role;
use dormouse_proto::{call::Refusal, code::Code, management::client_frame::Operation};

use super::credential::Credential;

/// What an operation is called in messages and in the log, who may ask for it, and what it is about.
pub(super) struct Right {
    pub(super) name: &'static str,
    pub(super) role: Role,
    /// Id or name, as it was given; empty where there is none.
    pub(super) about: String,
}

/// As much of an id or a name as is logged: the longest that is one.
const ABOUT: usize = 200;

impl Right {
    /// What an operation takes.
    pub(super) fn of(operation: &Operation) -> Self {
        use Role::{Admin, Cluster, Operator, Reader};
        let (name, role, about) = match operation {
            // Refused anyway, with a sentence of its own.
            Operation::Hello(_) => ("hello", Reader, ""),
            Operation::Health(_) => ("health", Reader, ""),
            Operation::Metrics(_) => ("metrics", Reader, ""),

            Operation::BeginUpload(of) => ("begin upload", Operator, of.name.as_str()),
            Operation::UploadChunk(_) => ("upload chunk", Operator, ""),
            Operation::FinishUpload(_) => ("finish upload", Operator, ""),
            Operation::ListImages(_) => ("list images", Reader, ""),
            Operation::GetImage(of) => ("get image", Reader, of.name.as_str()),
            Operation::SetImage(of) => ("set image", Operator, of.name.as_str()),
            Operation::DeleteImage(of) => ("delete image", Operator, of.name.as_str()),

            Operation::Start(of) => ("start", Operator, of.id.as_str()),
            Operation::Get(of) => ("get", Reader, of.id.as_str()),
            Operation::List(_) => ("list", Reader, ""),
            Operation::Count(_) => ("count", Reader, ""),
            Operation::Wait(of) => ("wait", Reader, of.id.as_str()),
            Operation::Signal(of) => ("signal", Operator, of.id.as_str()),
            Operation::Cancel(of) => ("cancel", Operator, of.id.as_str()),
            Operation::Pause(of) => ("pause", Operator, of.id.as_str()),
            Operation::Resume(of) => ("resume", Operator, of.id.as_str()),
            Operation::Stop(of) => ("stop", Operator, of.id.as_str()),
            Operation::Delete(of) => ("delete", Operator, of.id.as_str()),

            Operation::Checkpoints(of) => ("checkpoints", Reader, of.id.as_str()),
            Operation::Events(of) => ("events", Reader, of.id.as_str()),
            Operation::Attempts(of) => ("attempts", Reader, of.id.as_str()),
            Operation::Logs(of) => ("logs", Reader, of.id.as_str()),

            Operation::Nodes(_) => ("list nodes", Reader, ""),
            Operation::DrainNode(of) => ("drain node", Cluster, of.id.as_str()),
            Operation::UndrainNode(of) => ("undrain node", Cluster, of.id.as_str()),
            Operation::Cores(_) => ("list cores", Reader, ""),

            Operation::CreateTenant(of) => ("create tenant", Cluster, of.name.as_str()),
            Operation::Tenants(_) => ("list tenants", Cluster, ""),
            Operation::SetQuotas(of) => ("set quotas", Cluster, of.name.as_str()),

            Operation::CreateToken(of) => ("create token", Admin, of.name.as_str()),
            Operation::Tokens(_) => ("list tokens", Admin, ""),
            Operation::RevokeToken(of) => ("revoke token", Admin, of.name.as_str()),

            Operation::Prune(_) => ("prune", Admin, ""),
        };
        Self { name, role, about: about.chars().take(ABOUT).collect() }
    }

    /// Whether it changes anything: who asked is then kept in the log.
    pub(super) fn changes(&self, operation: &Operation) -> bool {
        // Each upload is named once, by its beginning.
        let piece = matches!(operation, Operation::UploadChunk(_) | Operation::FinishUpload(_));
        let looks = matches!(operation, Operation::Tenants(_) | Operation::Tokens(_));
        self.role > Role::Reader && !piece && !looks
    }

    /// Refuses whose role is not enough, and says how to get it.
    pub(super) fn check(&self, who: &Credential) -> Result<(), Refusal> {
        if who.role >= self.role {
            return Ok(());
        }
        Err(denied(who, &format!("`{}`", self.name), self.role))
    }
}

/// The refusal of `what`, which takes the role `needs`.
pub(super) fn denied(who: &Credential, what: &str, needs: Role) -> Refusal {
    let Credential { tenant, role, .. } = who;
    let remedy = match needs {
        Role::Cluster => {
            "use the administrator's certificate (pki/ of the services' data directory), or ask who has it"
                .to_owned()
        }
        Role::Reader | Role::Operator | Role::Admin => format!(
            "ask an administrator for another token: `dormouse token create --tenant {tenant} --role {needs}`"
        ),
    };
    let message = format!("{what} needs the role {needs}, and {who} of tenant {tenant} is {role}; {remedy}");
    Refusal::new(Code::PermissionDenied, message)
}
