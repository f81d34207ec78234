import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.cfg.JsonNodeFeature;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.io.IOException;
import java.net.URI;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import software.amazon.awssdk.services.s3.S3Client;

/**
 * Consumes Walgate's events: resolves claim checks, verifies them, and takes each event once.
 *
 * <p>Arguments: brokers, topic, group, an SQLite file, and perhaps {@code --until-end}. Credentials and region are found as AWS
 * tools find them; AWS_ENDPOINT_URL_S3 names another S3 server. What is explained in docs/consuming.md is not explained
 * here.
 */
public final class Consumer {
    /** Digits are kept: a double would lose some of a large number's. */
    private static final ObjectMapper JSON =
            JsonMapper.builder()
                    .enable(DeserializationFeature.USE_BIG_DECIMAL_FOR_FLOATS)
                    .disable(JsonNodeFeature.STRIP_TRAILING_BIGDECIMAL_ZEROES)
                    .build();

    private static final List<String> SCHEMA =
            List.of(
                    "CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)",
                    "CREATE TABLE IF NOT EXISTS received"
                            + " (position INTEGER PRIMARY KEY, type TEXT, aggregate_id TEXT, event TEXT NOT NULL)");

    private final S3Client s3;
    private final Connection database;

    private Consumer(S3Client s3, Connection database) {
        this.s3 = s3;
        this.database = database;
    }

    /** The object behind a reference; whatever is not exactly what was published is an error. */
    private byte[] fetch(JsonNode claim) throws IOException, GeneralSecurityException {
        String uri = claim.get("uri").textValue();
        byte[] body;
        if (uri.startsWith("s3://")) {
            // The key stands as it is: %2F is part of it.
            String[] place = uri.substring("s3://".length()).split("/", 2);
            body = s3.getObjectAsBytes(request -> request.bucket(place[0]).key(place[1])).asByteArrayUnsafe();
        } else {
            body = Files.readAllBytes(Path.of(URI.create(uri)));
        }
        String sha256 = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
        if (body.length != claim.get("bytes").longValue() || !sha256.equals(claim.get("sha256").textValue())) {
            throw new IOException(uri + " is not what was published");
        }
        return body;
    }

    /** The event as it would be without claim checks. */
    private JsonNode resolve(JsonNode published) throws IOException, GeneralSecurityException {
        JsonNode claim = published.get("claim");
        JsonNode event = claim.isNull() ? published : JSON.readTree(fetch(claim));
        for (Map.Entry<String, String> part : Map.of("data", "", "before", ".before").entrySet()) {
            if (!(event.get(part.getKey()) instanceof ObjectNode row)) {
                continue;
            }
            for (Map.Entry<String, JsonNode> column : row.properties()) {
                String end = "/" + encode(event.get("id").textValue()) + part.getValue() + "." + name(column.getKey());
                if (isReference(column.getValue(), end)) {
                    column.setValue(inline(column.getValue().get("$claim")));
                }
            }
        }
        return event;
    }

    /** A json column of your own may look like a reference: its uri would not end with this event and this column. */
    private static boolean isReference(JsonNode value, String end) {
        JsonNode uri = value.path("$claim").path("uri");
        if (value.size() != 1 || !uri.isTextual()) {
            return false;
        }
        String text = uri.textValue();
        return (text.startsWith("file://") ? URI.create(text).getPath() : text).endsWith(end);
    }

    /** A column's object as its value would stand in the event. */
    private JsonNode inline(JsonNode claim) throws IOException, GeneralSecurityException {
        byte[] body = fetch(claim);
        return switch (claim.get("content_type").textValue()) {
            case "application/json" -> JSON.readTree(body);
            case "application/octet-stream" -> new TextNode(Base64.getEncoder().encodeToString(body));
            default -> new TextNode(new String(body, StandardCharsets.UTF_8));
        };
    }

    private static String name(String column) {
        return column.equals("json") ? "%6Ason" : encode(column).replace(".", "%2E");
    }

    /** Everything but the unreserved characters of RFC 3986. */
    private static String encode(String text) {
        String form = URLEncoder.encode(text, StandardCharsets.UTF_8);
        return form.replace("+", "%20").replace("*", "%2A").replace("%7E", "~");
    }

    /** True: the event was new. */
    private boolean take(byte[] value) throws Exception {
        // A tombstone: its delete came before it.
        if (value == null) {
            return false;
        }
        JsonNode event = JSON.readTree(value);
        try (var seen = database.prepareStatement("INSERT OR IGNORE INTO seen (id) VALUES (?)")) {
            seen.setString(1, event.get("id").textValue());
            if (seen.executeUpdate() == 0) {
                return false;
            }
        }
        apply(resolve(event));
        return true;
    }

    /** The effect. Yours goes here: in the same transaction as the id. */
    private void apply(JsonNode event) throws SQLException, IOException {
        String insert = "INSERT INTO received (type, aggregate_id, event) VALUES (?, ?, ?)";
        try (var received = database.prepareStatement(insert)) {
            received.setString(1, event.get("type").textValue());
            received.setString(2, event.get("aggregate_id").textValue());
            received.setString(3, JSON.writeValueAsString(event));
            received.executeUpdate();
        }
    }

    private static Map<String, Object> settings(String brokers, String group) {
        return Map.of(
                "bootstrap.servers", brokers,
                "group.id", group,
                // What an aborted transaction left is not an event.
                "isolation.level", "read_committed",
                "auto.offset.reset", "earliest",
                // Offsets follow the database.
                "enable.auto.commit", false,
                "max.poll.records", 100,
                "key.deserializer", ByteArrayDeserializer.class,
                "value.deserializer", ByteArrayDeserializer.class);
    }

    public static void main(String[] arguments) throws Exception {
        boolean isUntilEnd = List.of(arguments).contains("--until-end");
        var builder = S3Client.builder();
        String endpoint = System.getenv("AWS_ENDPOINT_URL_S3");
        if (endpoint != null) {
            builder.endpointOverride(URI.create(endpoint)).forcePathStyle(true);
        }
        int taken = 0;
        int repeated = 0;
        try (S3Client s3 = builder.build();
                Connection database = DriverManager.getConnection("jdbc:sqlite:" + arguments[3]);
                var kafka = new KafkaConsumer<byte[], byte[]>(settings(arguments[0], arguments[2]))) {
            for (String statement : SCHEMA) {
                database.createStatement().execute(statement);
            }
            database.setAutoCommit(false);
            var consumer = new Consumer(s3, database);
            kafka.subscribe(List.of(arguments[1]));
            while (true) {
                var records = kafka.poll(Duration.ofSeconds(1));
                // Anything that fails ends the program: nothing of this round is committed, and it comes again.
                for (var record : records) {
                    if (consumer.take(record.value())) {
                        taken++;
                    } else {
                        repeated++;
                    }
                }
                database.commit();
                if (!records.isEmpty()) {
                    kafka.commitSync();
                }
                var assigned = new ArrayList<>(kafka.assignment());
                var ends = kafka.endOffsets(assigned);
                if (isUntilEnd
                        && !assigned.isEmpty()
                        && assigned.stream().allMatch(partition -> kafka.position(partition) >= ends.get(partition))) {
                    break;
                }
            }
        }
        System.out.println(taken + " new, " + repeated + " repeated");
    }
}
