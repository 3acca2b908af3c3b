//! The one table from operation to the least role that may ask for it.
//!
//! It is exhaustive: an operation that is added does not compile before somebody has decided
//! who may use it. Beside the role an operation only ever sees the credential's tenant.

use dormouse_core::domain::access::Role;
use dormouse_proto::{call::Refusal, code::Code, management::client_frame::Operation};

use super::credential::Credential;

/// What an operation is called in messages and in the log, and who may ask for it.
pub(super) struct Right {
    pub(super) name: &'static str,
    pub(super) role: Role,
}

impl Right {
    /// What an operation takes.
    pub(super) fn of(operation: &Operation) -> Self {
        use Role::{Admin, Cluster, Operator, Reader};
        let (name, role) = match operation {
            // Refused anyway, with a sentence of its own.
            Operation::Hello(_) => ("hello", Reader),
            Operation::Health(_) => ("health", Reader),

            Operation::BeginUpload(_) => ("begin upload", Operator),
            Operation::UploadChunk(_) => ("upload chunk", Operator),
            Operation::FinishUpload(_) => ("finish upload", Operator),
            Operation::ListImages(_) => ("list images", Reader),
            Operation::GetImage(_) => ("get image", Reader),
            Operation::DeleteImage(_) => ("delete image", Operator),

            Operation::Start(_) => ("start", Operator),
            Operation::Get(_) => ("get", Reader),
            Operation::List(_) => ("list", Reader),
            Operation::Count(_) => ("count", Reader),
            Operation::Wait(_) => ("wait", Reader),
            Operation::Signal(_) => ("signal", Operator),
            Operation::Cancel(_) => ("cancel", Operator),
            Operation::Pause(_) => ("pause", Operator),
            Operation::Resume(_) => ("resume", Operator),
            Operation::Stop(_) => ("stop", Operator),
            Operation::Delete(_) => ("delete", Operator),

            Operation::Checkpoints(_) => ("checkpoints", Reader),
            Operation::Events(_) => ("events", Reader),
            Operation::Attempts(_) => ("attempts", Reader),
            Operation::Logs(_) => ("logs", Reader),

            Operation::Nodes(_) => ("list nodes", Reader),
            Operation::DrainNode(_) => ("drain node", Cluster),
            Operation::UndrainNode(_) => ("undrain node", Cluster),
            Operation::Cores(_) => ("list cores", Reader),

            Operation::CreateTenant(_) => ("create tenant", Cluster),
            Operation::Tenants(_) => ("list tenants", Cluster),
            Operation::SetQuotas(_) => ("set quotas", Cluster),

            Operation::CreateToken(_) => ("create token", Admin),
            Operation::Tokens(_) => ("list tokens", Admin),
            Operation::RevokeToken(_) => ("revoke token", Admin),

            Operation::Prune(_) => ("prune", Admin),
        };
        Self { name, role }
    }

    /// Whether it changes anything: who asked is then kept in the log.
    pub(super) fn changes(&self, operation: &Operation) -> bool {
        // Each upload is named once, by its end.
        let piece = matches!(operation, Operation::BeginUpload(_) | Operation::UploadChunk(_));
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
