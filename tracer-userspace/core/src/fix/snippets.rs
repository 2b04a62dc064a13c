//! The application's part of a fix, as configuration for known clients and proxies.

/// A client or proxy with a known configuration.
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
    /// The limit that every idle time has to stay below, seconds.
    pub limit_s: u64,
}

/// Configuration lines for the application, and a note about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    pub text: String,
    /// What the lines do not do, and the version from which they work.
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

    /// Its full name, for help.
    pub fn title(self) -> &'static str {
        match self {
            Self::Mysql2 => "mysql2 for Node.js",
            Self::Libpq => "libpq, and clients built on it (psql, psycopg, Ruby pg)",
            Self::JdbcMysql => "MySQL Connector/J",
            Self::Hikari => "HikariCP",
            Self::GoSql => "database/sql of Go",
            Self::Pgbouncer => "PgBouncer",
            Self::Envoy => "Envoy, for its upstream connections",
            Self::NodeHttp => "http and https of Node.js",
            Self::Nginx => "nginx, for its upstream and client connections",
        }
    }

    pub fn snippet(self, pace: Pace) -> Snippet {
        let Pace { time_s, intvl_s, probes, limit_s } = pace;
        // The pool closes idle connections at four fifths of the limit.
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
                "keepAliveInitialDelay is TCP_KEEPIDLE; Node.js itself sets the interval to 1 s \
                 and the count to 10; idleTimeout has no effect while maxIdle is connectionLimit, \
                 its default, and a smaller maxIdle closes the connections above it at once; only \
                 TCP keepalive covers a connection that was taken out of the pool",
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
                "tcpKeepAlive is on by default and has no times of its own; the pod's network \
                 namespace sets the times (net.ipv4.tcp_keepalive_time); let the pool ping instead \
                 (--for hikari)",
            ),
            Self::Hikari => {
                // HikariCP ignores a keepaliveTime that is below 30 s, or not below maxLifetime.
                let ping_s = time_s.clamp(30, 300);
                (
                    format!("keepaliveTime={}\nmaxLifetime=1800000\n", ms(ping_s)),
                    "milliseconds; HikariCP 4 or later; keepaliveTime pings idle connections only \
                     and is at least 30 s; idleTimeout has no effect while minimumIdle equals \
                     maximumPoolSize; maxLifetime has to stay below the server's wait_timeout as \
                     well; long-running statements need TCP keepalive",
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
                "net.Dialer has keepalive on with 15 s by default; a driver that does not dial \
                 through net.Dialer (a custom DialContext) has to set keepalive itself",
            ),
            Self::Pgbouncer => (
                format!(
                    "[pgbouncer]\ntcp_keepalive = 1\ntcp_keepidle = {time_s}\ntcp_keepintvl = {intvl_s}\n\
                     tcp_keepcnt = {probes}\nserver_idle_timeout = {idle_s}\n"
                ),
                "keepalive is on by default, with the times of the network namespace where these \
                 values are 0; the values apply to its clients and its servers",
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
                "for upstream connections only; Envoy's HTTP idle timeout is one hour by default; \
                 a tcp_proxy has its own idle_timeout, also one hour by default",
            ),
            Self::NodeHttp => (
                format!(
                    "// client: close idle connections before the server and the path do\n\
                     const agent = new http.Agent({{ keepAlive: true, keepAliveMsecs: {}, timeout: {} }});\n\
                     // server: keep connections longer than the peer that reuses them (a proxy, a load balancer)\n\
                     server.keepAliveTimeout = {};\n",
                    ms(time_s),
                    ms(idle_s),
                    ms(limit_s + 15)
                ),
                "keepAliveMsecs is TCP_KEEPIDLE of idle sockets; Node.js itself sets the interval \
                 to 1 s and the count to 10; the server's keepAliveTimeout is 5 s by default (65 s \
                 in the newest releases), and only releases before 18 need a headersTimeout that \
                 is longer",
            ),
            Self::Nginx => (
                format!(
                    "upstream backend {{\n    server …;\n    keepalive 32;\n    keepalive_timeout {}s;\n}}\n\
                     server {{\n    listen 80 so_keepalive={time_s}s:{intvl_s}s:{probes};\n    \
                     location / {{\n        proxy_http_version 1.1;\n        \
                     proxy_set_header Connection \"\";\n        proxy_socket_keepalive on;\n        \
                     proxy_pass http://backend;\n    }}\n}}\n",
                    // A time above its default only lets the upstream close first.
                    idle_s.min(60)
                ),
                "proxy_socket_keepalive (1.15.6) has no times of its own; upstream connections use \
                 those of the network namespace; keepalive_timeout of an upstream is 60 s by \
                 default (1.15.3), and has to be shorter than the time after which the upstream \
                 itself closes",
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
    fn every_snippet_has_the_computed_times() {
        for client in Client::ALL {
            let text = client.snippet(PACE).text;
            let has = |number: &str| text.contains(number);
            let has_times = has("300") || has("720") || client == Client::JdbcMysql;
            assert!(has_times, "{client:?}:\n{text}");
        }
    }

    #[test]
    fn hikari_gets_no_time_that_it_ignores() {
        let pace = Pace { time_s: 1, intvl_s: 1, probes: 3, limit_s: 3 };
        let text = Client::Hikari.snippet(pace).text;
        assert!(text.contains("keepaliveTime=30000\n"), "{text}");
    }

    #[test]
    fn a_server_keeps_idle_connections_longer_than_a_client_reuses_them() {
        let text = Client::NodeHttp.snippet(PACE).text;
        assert!(text.contains("timeout: 720000"), "{text}");
        assert!(text.contains("keepAliveTimeout = 915000"), "{text}");
        let text = Client::Nginx.snippet(PACE).text;
        assert!(text.contains("keepalive_timeout 60s;"), "{text}");
    }

    #[test]
    fn no_snippet_has_characters_that_a_terminal_shows_escaped() {
        for client in Client::ALL {
            for line in client.snippet(PACE).text.lines() {
                assert_eq!(rsttrace_model::escape::terminal(line), line, "{client:?}");
            }
        }
    }
}
