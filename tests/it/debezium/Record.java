import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.Header;
import io.debezium.engine.format.Json;
import io.debezium.engine.format.KeyValueHeaderChangeEventFormat;
import java.io.FileReader;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** Runs Debezium's engine until the row with the id 999 and writes each record as a line of JSON. Arguments: properties, host, port, database, output. */
public class Record {
  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    try (FileReader file = new FileReader(arguments[0])) {
      properties.load(file);
    }
    properties.putAll(Map.of("database.hostname", arguments[1], "database.port", arguments[2], "database.user", "postgres",
        "database.password", "none", "database.dbname", arguments[3]));
    PrintWriter out = new PrintWriter(arguments[4], StandardCharsets.UTF_8);
    CountDownLatch done = new CountDownLatch(1);
    DebeziumEngine<ChangeEvent<String, String>> engine = DebeziumEngine
        .create(KeyValueHeaderChangeEventFormat.of(Json.class, Json.class, Json.class))
        .using(properties)
        .using((DebeziumEngine.CompletionCallback) (ok, message, error) -> {
          System.err.println(message + " " + error);
          done.countDown();
        })
        .notifying(event -> {
          out.println(line(event));
          out.flush();
          if (event.value() != null && event.value().contains("\"id\":999,")) {
            done.countDown();
          }
        })
        .build();
    ExecutorService thread = Executors.newSingleThreadExecutor();
    thread.execute(engine);
    boolean ended = done.await(120, TimeUnit.SECONDS);
    engine.close();
    thread.shutdown();
    System.exit(ended ? 0 : 1);
  }

  private static String line(ChangeEvent<String, String> event) {
    Map<String, String> headers = new TreeMap<>();
    for (Header<?> header : event.headers()) {
      // What they call context (a run's id among it) says nothing of the change.
      if (!header.getKey().startsWith("__debezium.context.")) {
        headers.put(header.getKey(), String.valueOf(header.getValue()));
      }
    }
    StringBuilder text = new StringBuilder("{");
    headers.forEach((key, value) -> text.append(text.length() > 1 ? "," : "").append('"').append(key).append("\":").append(value));
    return "{\"topic\":\"" + event.destination() + "\",\"key\":" + event.key() + ",\"headers\":" + text + "},\"value\":" + event.value() + "}";
  }
}
