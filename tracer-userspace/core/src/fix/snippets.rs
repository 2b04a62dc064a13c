//! The application's part of a fix, for clients and proxies by name.

/// A client or proxy whose configuration we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Mysql2,
    Libpq,
    JdbcMysql,
    Hikari,
    GoSql,
    Pgbouncer,
    Envoy,
    NodeHttp,
    Nginx,
}

/// How often to probe, and how long a connection may idle, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub time_s: u64,
    pub intvl_s: u64,
    pub probes: u64,
    /// What every idle time has to stay below.
    pub limit_s: u64,
}

/// Lines to put into the application, and what they rest on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    pub text: String,
    /// What they do not do, and from which version on they work.
    pub note: &'static str,
}

impl Client {
    /// Every client, for help.
    pub const ALL: [Self; 9] = [
        Self::Mysql2,
        Self::Libpq,
        Self::JdbcMysql,
        Self::Hikari,
        Self::GoSql,
        Self::Pgbouncer,
        Self::Envoy,
        Self::NodeHttp,
        Self::Nginx,
    ];

    /// The name on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Mysql2 => "mysql2",
            Self::Libpq => "libpq",
            Self::JdbcMysql => "jdbc-mysql",
            Self::Hikari => "hikari",
            Self::GoSql => "go-sql",
            Self::Pgbouncer => "pgbouncer",
            Self::Envoy => "envoy",
            Self::NodeHttp => "node-http",
            Self::Nginx => "nginx",
        }
    }

    /// What it is, for help.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mysql2 => "mysql2 for Node.js",
            Self::Libpq => "libpq, and what is built on it: psql, psycopg, Ruby pg",
            Self::JdbcMysql => "MySQL Connector/J",
            Self::Hikari => "HikariCP",
            Self::GoSql => "database/sql of Go",
            Self::Pgbouncer => "PgBouncer",
            Self::Envoy => "Envoy, towards its upstream",
            Self::NodeHttp => "http and https of Node.js",
            Self::Nginx => "nginx, towards its upstream and its clients",
        }
    }

    pub fn snippet(self, pace: Pace) -> Snippet {
        let Pace { time_s, intvl_s, probes, limit_s } = pace;
        // A pool closes with a fifth to spare.
        let idle_s = (limit_s * 4 / 5).max(1);
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        let dead_ms = ms(time_s + intvl_s * probes);
        let (text, note) = match self {
            Self::Mysql2 => (
                format!(
                    "const pool = mysql.createPool({{\n  // …\n  enableKeepAlive: true,\n  \
                     keepAliveInitialDelay: {},  // ms\n  idleTimeout: {},  // ms\n  maxIdle: 9,  // one less than connectionLimit (10 unless set)\n}});\n",
                    ms(time_s),
                    ms(idle_s)
                ),
                "the delay is TCP_KEEPIDLE; Node.js sets the interval to 1 s and the count to 10 itself; \
                 idleTimeout does nothing while maxIdle is connectionLimit, its default, and a smaller \
                 maxIdle closes what is above it at once; a connection that was taken out of the pool is \
                 kept alive by TCP only",
            ),
            Self::Libpq => (
                format!(
                    "keepalives=1 keepalives_idle={time_s} keepalives_interval={intvl_s} \
                     keepalives_count={probes} tcp_user_timeout={dead_ms}\n"
                ),
                "keepalives are on by default, with the times of the network namespace; \
                 tcp_user_timeout is in milliseconds and needs libpq 12",
            ),
            Self::JdbcMysql => (
                "jdbc:mysql://HOST:3306/DB?tcpKeepAlive=true\n".into(),
                "tcpKeepAlive is on by default and has no times: they are those of the pod's network \
                 namespace (net.ipv4.tcp_keepalive_time); let the pool ping instead (--for hikari)",
            ),
            Self::Hikari => {
                // It ignores a keepaliveTime below 30 s, or not below maxLifetime.
                let ping_s = time_s.clamp(30, 300);
                (
                    format!("keepaliveTime={}\nmaxLifetime=1800000\n", ms(ping_s)),
                    "milliseconds; HikariCP 4 or later; keepaliveTime pings idle connections only and is \
                     at least 30 s; idleTimeout does nothing while minimumIdle equals maximumPoolSize; \
                     maxLifetime has to stay below the server's wait_timeout as well; statements that \
                     run for long need TCP keepalive",
                )
            }
            Self::GoSql => (
                format!(
                    "db.SetConnMaxIdleTime({idle_s} * time.Second)\n\
                     db.SetConnMaxLifetime({} * time.Second)\n\
                     // and for the driver's connections, from Go 1.23 on:\n\
                     dialer := &net.Dialer{{KeepAliveConfig: net.KeepAliveConfig{{\n\
                     \x20   Enable: true, Idle: {time_s} * time.Second,\n\
                     \x20   Interval: {intvl_s} * time.Second, Count: {probes},\n}}}}\n",
                    (idle_s * 4).max(1800)
                ),
                "net.Dialer has keepalive on with 15 s unless somebody sets it otherwise; a driver that \
                 does not dial through it (a custom DialContext) has to do so itself",
            ),
            Self::Pgbouncer => (
                format!(
                    "[pgbouncer]\ntcp_keepalive = 1\ntcp_keepidle = {time_s}\ntcp_keepintvl = {intvl_s}\n\
                     tcp_keepcnt = {probes}\nserver_idle_timeout = {idle_s}\n"
                ),
                "keepalive is on by default, with the times of the network namespace where these are 0; \
                 they hold for its clients and its servers",
            ),
            Self::Envoy => (
                format!(
                    "clusters:\n- name: …\n  upstream_connection_options:\n    tcp_keepalive:\n      \
                     keepalive_time: {time_s}\n      keepalive_interval: {intvl_s}\n      \
                     keepalive_probes: {probes}\n  typed_extension_protocol_options:\n    \
                     envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n      \
                     \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n      \
                     common_http_protocol_options:\n        idle_timeout: {idle_s}s\n      \
                     explicit_http_config:\n        http_protocol_options: {{}}\n"
                ),
                "towards the upstream only; its HTTP idle timeout is one hour unless it is set; a \
                 tcp_proxy has an idle_timeout of its own, one hour as well",
            ),
            Self::NodeHttp => (
                format!(
                    "// client: give up before the server and the path do\n\
                     const agent = new http.Agent({{ keepAlive: true, keepAliveMsecs: {}, timeout: {} }});\n\
                     // server: keep connections longer than whoever reuses them (a proxy, a load balancer)\n\
                     server.keepAliveTimeout = {};\n",
                    ms(time_s),
                    ms(idle_s),
                    ms(limit_s + 15)
                ),
                "keepAliveMsecs is TCP_KEEPIDLE of idle sockets; Node.js sets the interval to 1 s and the \
                 count to 10 itself; the server's keepAliveTimeout is 5 s by default (65 s in the newest \
                 releases), and only releases before 18 need a headersTimeout that is longer",
            ),
            Self::Nginx => (
                format!(
                    "upstream backend {{\n    server …;\n    keepalive 32;\n    keepalive_timeout {}s;\n}}\n\
                     server {{\n    listen 80 so_keepalive={time_s}s:{intvl_s}s:{probes};\n    \
                     location / {{\n        proxy_http_version 1.1;\n        \
                     proxy_set_header Connection \"\";\n        proxy_socket_keepalive on;\n        \
                     proxy_pass http://backend;\n    }}\n}}\n",
                    // Longer than its default only invites the upstream to close first.
                    idle_s.min(60)
                ),
                "proxy_socket_keepalive (1.15.6) has no times: towards the upstream they are those of the \
                 network namespace; keepalive_timeout of an upstream is 60 s by default (1.15.3), and has \
                 to be shorter than the time after which the upstream itself closes",
            ),
        };
        Snippet { text, note }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { time_s: 300, intvl_s: 30, probes: 3, limit_s: 900 };

    #[test]
    fn every_client_is_told_the_computed_times() {
        for client in Client::ALL {
            let text = client.snippet(PACE).text;
            let has = |number: &str| text.contains(number);
            let told = has("300") || has("720") || client == Client::JdbcMysql;
            assert!(told, "{client:?}:\n{text}");
        }
    }

    #[test]
    fn hikari_is_given_nothing_that_it_would_ignore() {
        let pace = Pace { time_s: 1, intvl_s: 1, probes: 3, limit_s: 3 };
        let text = Client::Hikari.snippet(pace).text;
        assert!(text.contains("keepaliveTime=30000\n"), "{text}");
    }

    #[test]
    fn who_serves_keeps_longer_than_who_reuses() {
        let text = Client::NodeHttp.snippet(PACE).text;
        assert!(text.contains("timeout: 720000"), "{text}");
        assert!(text.contains("keepAliveTimeout = 915000"), "{text}");
        let text = Client::Nginx.snippet(PACE).text;
        assert!(text.contains("keepalive_timeout 60s;"), "{text}");
    }

    #[test]
    fn no_snippet_has_what_a_terminal_shows_as_an_escape() {
        for client in Client::ALL {
            for line in client.snippet(PACE).text.lines() {
                assert_eq!(rsttrace_model::escape::terminal(line), line, "{client:?}");
            }
        }
    }
}
